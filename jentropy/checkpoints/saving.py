"""`save`: pytrees into compressed checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jentropy.containers import chunks, coder, trees

from . import index as index_lib
from . import structure
from .writer import writing


def save(path: str | Path, packed: Any, *, overwrite: bool = False) -> None:
    """Writes a pytree as a compressed checkpoint.

    Args:
      path: where it will appear, whole or not at all.
      packed: a pytree of `CompressedTensor` or arrays; arrays are compressed. Dicts, lists, tuples,
        None, and Python's numbers and texts come back as they are, any other node as a dict of its
        fields, unless `load` has a target.
      overwrite: whether a compressed checkpoint that is there is replaced.

    Raises:
      InputError: a leaf that is no array, number or text, by its path.
      DestinationError: `path` exists or cannot be written.
    """
    leaves, tree = structure.describe(trees.compress(packed))
    with writing(Path(path), overwrite=overwrite) as writer:
        entries = []
        for name, leaf in leaves:
            written = []
            for item in chunks.coded_chunks(name, leaf):
                coder.check_payload(item)
                place = writer.append(item.payload)
                written.append(index_lib.chunk_document(item.chunk, place, item.span.coding))
                writer.record(None)
            entries.append(
                index_lib.entry_document(name, index_lib.header_document(leaf.header), written)
            )
        writer.flush()
        writer.finish(index_lib.document(bundles=writer.bundles, tensors=entries, tree=tree))
