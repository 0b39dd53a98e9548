"""`save`: pytrees into compressed checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jentropy import jax_internals
from jentropy.containers import drafting, trees
from jentropy.errors import place

from . import faults, structure
from .bases import Bases
from .contents import PYTREE, in_memory, of_leaf
from .entries import Entry
from .hosts import Gathering, own_share, together
from .items import Item, base_digest, fingerprint, with_base, write
from .mirrors import destination
from .shared_stages import expect_free
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

    Processes of `jax.distributed` call it together: each writes a share of the leaves into a folder
    that all of them share. A leaf that lies over several of them is brought whole to one.

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
      gathering: what brings arrays that lie over several processes to the ones that write them.
    """

    items: Sequence[Item]
    tree: Any
    gathering: Gathering

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
        told = {
            "tree": self.tree,
            "formats": tuple(structure.formats(self.tree)),
            "beside": dict(beside or {}),
        }

        def contents(entries: Sequence[Entry]) -> dict[str, Any]:
            return told | {"tensors": tuple(entries), "base": base_digest(entries, below)}

        target, state = destination(path), fingerprint("pytree", below)
        with together(place(target)) as team:
            expect_free(target, team, overwrite=overwrite)
            with writing(target, team, state, overwrite=overwrite) as writer:
                self.gathering.deal(team, [item.nbytes for item in items])
                entries = write(writer, items)
                self.gathering.finish()
                writer.finish(entries, contents)


def taken(packed: Any, *, copied: bool = False) -> Taken:
    """Takes a pytree.

    Args:
      packed: as of `save`.
      copied: whether arrays are copied to the host now, so that the tree may change, or its buffers
        be given away, before it is written. Of several processes, which all come here, each keeps
        what it will write.

    Raises:
      InputError: a leaf that is no array, number or text, by its path.
    """
    leaves, treedef = trees.flatten(packed)
    plain = jax.tree_util.tree_unflatten(treedef, [leaf for _, leaf in leaves])
    named, tree = structure.flatten(plain)
    if copied:
        for _, leaf in named:
            if isinstance(leaf, jax.Array) and not trees.is_key(leaf) and not _is_spread(leaf):
                leaf.copy_to_host_async()
    gathering = Gathering([leaf if _is_spread(leaf) and not copied else None for _, leaf in named])
    items = [_item(name, leaf, gathering.reader(n)) for n, (name, leaf) in enumerate(named)]
    if copied:
        begin, end = own_share([item.nbytes for item in items])
        items = [
            _copied(item, leaf, here=begin <= n < end)
            for n, (item, (_, leaf)) in enumerate(zip(items, named, strict=True))
        ]
    return Taken(items=items, tree=tree, gathering=gathering)


def _is_spread(leaf: Any) -> bool:
    """Whether no process has all of an array."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return False
    return not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def _item(name: str, leaf: Any, gathered: Callable[[], np.ndarray]) -> Item:
    if trees.is_compressed(leaf) and not leaf.header.delta:
        return Item(name=name, array=leaf)
    numpy, key = not isinstance(leaf, jax.Array), trees.key_implementation(leaf, name)
    draft = partial(drafting.Original, numpy=numpy, key=key)
    reads = not isinstance(leaf, np.ndarray)
    array = of_leaf(name, leaf)
    if _is_spread(leaf):
        array = replace(array, read=gathered)
    return Item(name=name, array=array, draft=draft, reads=reads)


def _copied(item: Item, leaf: Any, *, here: bool) -> Item:
    """An item with its values in the host's memory; one of another process as it is.

    All processes take part where an array lies over them.
    """
    whole = jax_internals.gathered(leaf) if _is_spread(leaf) else None
    if not here or item.array is leaf:  # compressed: nobody changes it
        return item
    values = np.array(trees.as_array(leaf, item.name) if whole is None else whole)  # no view
    return replace(item, array=in_memory(item.name, values, PYTREE), reads=False)
