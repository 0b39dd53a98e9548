"""`load`: a compressed checkpoint as a pytree of tensors that are still compressed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jentropy.containers import trees
from jentropy.containers.tensor import CompressedTensor, first_twice
from jentropy.errors import InputError

from . import faults, structure, targets
from .archived import Archive
from .bases import Bases, with_bases
from .decoding import compressed_tensor, damage_of
from .entries import Entry
from .mirrors import located

logger = logging.getLogger(__name__)


@faults.told
def load(
    path: str | Path,
    sharding: Any = None,
    *,
    target: Any = None,
    damaged: str = "raise",
    base: Bases = None,
) -> Any:
    """Opens a compressed checkpoint without reading or decoding a weight.

    Without a target the tree is nested dicts, lists and tuples: named tuples, dataclasses and Flax
    states come as dicts of their fields, which a message of the logger says (a `QuantizedTensor`
    comes as one); what Orbax stored, as
    Orbax keeps it, has lists for tuples too. A dict's keys stand in the order in which they were
    saved, but JAX orders the leaves of a dict by its sorted keys, not as fields were: give such a
    tree a `target` rather than put its leaves into another structure.

    Args:
      path: a compressed checkpoint, or its URL, whose payloads are read here and now.
      sharding: where `decompress` will put the tensors: a `jax.sharding.Sharding` for all of them,
        or a pytree of shardings, `jax.ShapeDtypeStruct`s or None for the default, each of which
        stands for all that is below its place.
      target: the tree as it is wanted, of arrays, `jax.ShapeDtypeStruct`, or Python's numbers and
        texts: `nnx.state(model)`, a `TrainState`, or an abstract one. Leaves are found by their
        paths and come with the target's types and shardings. What it has and the checkpoint has
        not, or the other way round, is an error; JSON beside an item may be left out.
      damaged: `"raise"`: damage of the index is an error here, that of a tensor when it is decoded;
        `"leave_out"`: every payload is read and held to its hash, and None stands for tensors that
        are damaged, which the logger names; a quantised weight that lacks one is a dict of them.
      base: the compressed checkpoint that was the base when it was saved, or several, the nearest
        first; without one, tensors that are told by it do not decode.

    Returns:
      A pytree of `CompressedTensor`, and of Python's numbers and texts: the one that was saved; of
      an Orbax checkpoint its tree, or a dict of several by step and item; of other files a dict by
      name.

    Raises:
      InputError: not a compressed checkpoint, or one with a damaged index; a sharding that does
        not fit a tensor or a target that differs, by leaf. Damaged payloads are found when they
        are decoded.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jentropy.save(f"{folder}/t", {"w": np.ones(3), "step": 7})
      ...     tree = jentropy.load(f"{folder}/t", target={"w": np.zeros(3), "step": 0})
      ...     tree["step"], jentropy.decompress(tree)["w"].tolist()
      (7, [1.0, 1.0, 1.0])
    """
    if sharding is not None and target is not None:
        raise InputError("arguments of load", expected="sharding or target", found="both")
    if damaged not in ("raise", "leave_out"):
        raise InputError("damaged", expected="raise or leave_out", found=f"{damaged!r:.40}")
    found: list[InputError] = []
    store = with_bases(located(path), base, found if damaged == "leave_out" else None)
    index = store.index
    left_out = set[int]()
    if damaged == "leave_out":
        for entry, _, error in damage_of(store, index.tensors, bases=True):
            left_out.add(id(entry))
            found.append(error)
        for error in found:
            logger.warning("%s", error)

    def packed_of(entry: Entry) -> CompressedTensor | None:
        return None if id(entry) in left_out else compressed_tensor(store, entry)

    if not index.has_tree:
        entries = [item for _, array in Archive(store).arrays() for item in array.items()]
        if (twice := first_twice(name for name, _ in entries)) is not None:
            raise InputError("two arrays have this name", file=store.path, tensor=twice)
        tree = required = {name: packed_of(entry) for name, entry in entries}
    else:
        packed = _with_numbers([packed_of(entry) for entry in index.tensors])
        try:
            tree = structure.fill(index.tree, packed)
        except InputError as error:
            raise error.at(file=store.array_path("index")) from error
        required = structure.fill(index.tree, packed, json=False)
    if target is not None:
        return targets.fit(tree, target, store.path, required=required)
    types = structure.types(index.tree)
    if types:
        logger.warning(
            "%s: nodes of %s come as dicts, whose leaves JAX orders by sorted keys; "
            "jentropy.load(path, target=...) restores them",
            path,
            ", ".join(types),
        )
    return tree if sharding is None else trees.with_sharding(tree, sharding)


def _with_numbers(packed: list[CompressedTensor | None]) -> list[Any]:
    """The same, Python's numbers decoded: they are no tensors."""
    numbers = [i for i, tensor in enumerate(packed) if tensor and tensor.header.scalar]
    out: list[Any] = list(packed)
    for i, number in zip(numbers, trees.decompress([packed[i] for i in numbers]), strict=True):
        out[i] = number
    return out
