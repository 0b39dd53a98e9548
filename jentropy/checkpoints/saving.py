"""`save`: pytrees into compressed checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jentropy.containers import chunks, coder, trees

from . import structure
from .index import Entry
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
    leaves, tree = structure.flatten(trees.compress(packed))
    with writing(Path(path), overwrite=overwrite) as writer:
        entries = []
        for name, leaf in leaves:
            places = []
            for item in chunks.coded_chunks(name, leaf):
                coder.check_payload(item)
                places.append(writer.append(item.payload))
                writer.record(None)
            entries.append(Entry(name, leaf.header, tuple(places)))
        formats = tuple(structure.formats(tree))
        writer.finish(tensors=tuple(entries), tree=tree, formats=formats)
