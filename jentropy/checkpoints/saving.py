"""`save`: pytrees into compressed checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jentropy.containers import coder, trees

from . import faults, structure
from .bases import Bases
from .contents import PYTREE, in_memory, of_leaf
from .items import Item, base_digest, fingerprint, with_base, write
from .mirrors import destination
from .writer import writing


@faults.told
def save(
    path: str | Path,
    packed: Any,
    *,
    overwrite: bool = False,
    beside: Mapping[str, str] | None = None,
    base: Bases = None,
) -> None:
    """Writes a pytree as a compressed checkpoint.

    Work that was killed or failed is taken up by the next call for this path: of each tensor that
    it finished and that is the same, by its hashes.

    Args:
      path: where it will appear, whole or not at all; see `compress_checkpoint` for URLs.
      packed: a pytree of `CompressedTensor` or arrays; arrays are compressed. Dicts, lists, tuples,
        `QuantizedTensor`, None, and Python's numbers and texts come back as they are, any other
        node as a dict of its fields, unless `load` has a target.
      overwrite: whether a compressed checkpoint that is there is replaced.
      beside: texts by the names of the files that they would be: a model's `config.json`, its
        `tokenizer.json`, which opening it finds.
      base: a compressed checkpoint, by whose tensors those of the same names are told where that
        takes less: the step before, or what was tuned. It is needed to read this one. If it has a
        base itself, that follows: the nearest first.

    Raises:
      InputError: a leaf that is no array, number or text, by its path.
      DestinationError: `path` exists or cannot be written.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jentropy.save(f"{folder}/t", {"w": np.arange(3), "rate": 0.5})
      ...     tree = jentropy.decompress(jentropy.load(f"{folder}/t"))
      >>> tree["w"].tolist(), tree["rate"]
      ([0, 1, 2], 0.5)
    """
    taken(packed).write(path, overwrite=overwrite, beside=beside, base=base)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """A pytree as it was when it was taken, to be written later.

    Attributes:
      items: its arrays.
      tree: its structure.
    """

    items: Sequence[Item]
    tree: Any

    def write(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        beside: Mapping[str, str] | None = None,
        base: Bases = None,
    ) -> None:
        """Writes it as a compressed checkpoint, see `save`."""
        items, below = with_base(self.items, base)
        state = fingerprint("pytree", below)
        with writing(destination(path), state, overwrite=overwrite) as writer:
            tensors = write(writer, items)
            writer.finish(
                tensors=tensors,
                tree=self.tree,
                base=base_digest(tensors, below),
                formats=tuple(structure.formats(self.tree)),
                beside=dict(beside or {}),
            )


def taken(packed: Any, *, copied: bool = False) -> Taken:
    """Takes a pytree.

    Args:
      packed: as of `save`.
      copied: whether arrays are copied to the host now, so that the tree may change, or its buffers
        be given away, before it is written.

    Raises:
      InputError: a leaf that is no array, number or text, by its path.
    """
    leaves, treedef = trees.flatten(packed)
    plain = jax.tree_util.tree_unflatten(treedef, [leaf for _, leaf in leaves])
    named, tree = structure.flatten(plain)
    if copied:
        for _, leaf in named:
            if isinstance(leaf, jax.Array) and not trees.is_key(leaf):
                leaf.copy_to_host_async()
    return Taken(items=[_item(name, leaf, copied=copied) for name, leaf in named], tree=tree)


def _item(name: str, leaf: Any, *, copied: bool) -> Item:
    if trees.is_compressed(leaf) and not leaf.header.delta:
        return Item(name=name, array=leaf)
    numpy, key = not isinstance(leaf, jax.Array), trees.key_implementation(leaf, name)
    draft = partial(coder.Original, numpy=numpy, key=key)
    if copied:
        values = np.array(trees.as_array(leaf, name))  # of a CPU's buffers a view before
        return Item(name=name, array=in_memory(name, values, PYTREE), draft=draft)
    reads = not isinstance(leaf, np.ndarray)
    return Item(name=name, array=of_leaf(name, leaf), draft=draft, reads=reads)
