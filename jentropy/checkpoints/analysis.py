"""The entropy report of a checkpoint or a pytree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jentropy import entropy, modes
from jentropy.codecs import threads, window12
from jentropy.containers import trees
from jentropy.entropy import EntropyReport, WeightCounts
from jentropy.errors import InputError, place
from jentropy.formats import BF16, RAW, QuantizedTensor, codes_of

from . import faults, torn
from .bases import Bases
from .checkpoint import Checkpoint, Tensor
from .contents import PYTREE, Contents, StoredArray, of_leaf, read_contents
from .dialects import PLAIN
from .opening import open_checkpoint
from .origin import origin_of
from .progress import Progress, expect
from .reading import read

ESCAPE_BITS = 32  # of a weight outside of the window of `window12`: its place and its code


@faults.told
def analyze(
    source: Any,
    progress: Progress | None = None,
    *,
    step: int | None = None,
    strict: bool = False,
    contexts: bool = True,
    base: Bases = None,
) -> EntropyReport:
    """Shannon entropy per field of every format in a checkpoint, and the magnitudes behind it.

    Args:
      source: a path that `open_checkpoint` takes, what it gives, or a pytree of arrays,
        `CompressedTensor` or `formats.QuantizedTensor`.
      progress: called with the bytes counted since the last call; see `progress.Progress`.
      step: the only step of the root of an Orbax `CheckpointManager` that is wanted.
      strict: see `open_checkpoint`.
      contexts: whether to measure what neighbours, rows, columns and siblings tell of weights.
      base: of a compressed checkpoint, see `load`.

    Returns:
      An `EntropyReport`; `.to_json()` gives plain data.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
      >>> report.formats["FP16"].entropy_bits
      0.0
    """
    threads.keep_memory()
    checkpoint = source
    if isinstance(source, str | Path):
        checkpoint = open_checkpoint(source, step=step, strict=strict, base=base)
    if isinstance(checkpoint, Checkpoint):
        name = str(place(checkpoint.source) if checkpoint is source else source)
        told = read_contents(checkpoint.source, (), checkpoint.read_text)
        builder = entropy.ReportBuilder(name, checkpoint.notes, origin_of(told))
        weights = checkpoint.read_runs()
        expect(progress, sum(_nbytes(checkpoint.tensor(name)) for name in checkpoint.names()))
    else:
        tensors, sharded, notes = _leaves(source, strict=strict)
        builder = entropy.ReportBuilder("pytree", notes)
        weights = ((tensor, iter([_codes(tensor, sharded)])) for tensor in tensors)
        expect(progress, sum(map(_nbytes, tensors)))
    # Processes that count together do so in the same order.
    workers = threads.count() if jax.process_count() == 1 else 1
    with modes.detached_modes():
        measured = entropy.measure_all(weights, workers, with_contexts=contexts)
        for tensor, counts, gains in measured:
            builder.add(
                tensor.name,
                tensor.dialect,
                tensor.shape,
                counts,
                tensor.note,
                resident_bits=_resident_bits(counts),
                contexts=gains,
            )
            if progress:
                progress(_nbytes(tensor))
    if isinstance(checkpoint, Checkpoint):
        torn.expect_whole(checkpoint.source)
    return builder.build()


def _resident_bits(counts: WeightCounts) -> float | None:
    """Bits of a weight in device memory, if they are others than it is stored in."""
    if counts.number_format.name != BF16.name or not counts.weights:
        return None
    exponents = counts.code.bit_range(BF16.shift("exponent"), BF16.field_bits("exponent"))
    top = int(window12.choose_top(exponents))
    zeros = counts.code.slices[0][[0, 1 << BF16.code_bits - 1]].sum()
    inside = exponents[top - window12.WINDOW + 1 : top + 1].sum() + zeros
    return 12 + ESCAPE_BITS * (1 - int(inside) / counts.weights)


def _nbytes(tensor: Tensor) -> int:
    """Of a weight's codes and parameters."""
    leaves = jax.tree.leaves(tensor.weight.codes)
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def _codes(tensor: Tensor, sharded: Mapping[str, jax.Array]) -> Mapping[str, Any]:
    """Codes of a leaf; of one that lies over several devices, where they are."""
    leaf = sharded.get(tensor.name)
    if leaf is None or not tensor.number_format.is_plain or tensor.format == RAW:
        return tensor.codes
    return {"code": codes_of(leaf)}


def _leaves(
    source: Any, *, strict: bool
) -> tuple[Sequence[Tensor], Mapping[str, jax.Array], tuple[str, ...]]:
    """The weights of a pytree, leaves over several devices, and what was not recognised."""
    leaves = jax.tree_util.tree_flatten_with_path(source, is_leaf=_is_leaf)[0]
    leaves = [(path, leaf) for path, leaf in leaves if not isinstance(leaf, str)]
    names = trees.leaf_names([path for path, _ in leaves])
    weights: dict[str, Tensor] = {}
    arrays: dict[str, StoredArray] = {}
    sharded: dict[str, jax.Array] = {}
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if isinstance(leaf, QuantizedTensor):
            weights[name] = Tensor(name=name, weight=_checked(leaf, name), dialect=PLAIN)
        else:
            arrays[name] = of_leaf(name, leaf)
            if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
                sharded[name] = leaf
    reading = read(Contents(source=PYTREE, arrays=arrays), strict=strict)
    return [*weights.values(), *reading.tensors], sharded, reading.notes


def _is_leaf(node: Any) -> bool:
    return trees.is_compressed(node) or isinstance(node, QuantizedTensor)


def _checked(weight: QuantizedTensor, name: str) -> QuantizedTensor:
    try:
        return weight.check()
    except InputError as error:
        raise error.at(tensor=name) from error
