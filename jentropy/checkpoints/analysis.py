"""The entropy report of a checkpoint or a pytree."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jentropy import entropy
from jentropy.containers import trees
from jentropy.entropy import EntropyReport
from jentropy.errors import InputError
from jentropy.formats import QuantizedTensor

from .checkpoint import Tensor
from .contents import PYTREE, Contents, StoredArray, of_leaf
from .dialects import PLAIN
from .opening import open_checkpoint
from .progress import Progress, expect
from .reading import read


def analyze(
    source: Any,
    progress: Progress | None = None,
    *,
    step: int | None = None,
    strict: bool = False,
) -> EntropyReport:
    """Shannon entropy per field of every format in a checkpoint, and the magnitudes behind it.

    Args:
      source: a path that `open_checkpoint` takes, or a pytree of arrays, `CompressedTensor`
        or `formats.QuantizedTensor`.
      progress: called with the elements counted since the last call; see `progress.Progress`.
      step: the only step of the root of an Orbax `CheckpointManager` that is wanted.
      strict: see `open_checkpoint`.

    Returns:
      An `EntropyReport`; `.to_json()` gives plain data.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
      >>> report.formats["FP16"].entropy_bits
      0.0
    """
    if isinstance(source, str | Path):
        checkpoint = open_checkpoint(source, step=step, strict=strict)
        builder = entropy.ReportBuilder(str(source), checkpoint.notes)
        weights = checkpoint.read_runs()
        shapes = (checkpoint.tensor(name).shape for name in checkpoint.names())
        expect(progress, sum(map(math.prod, shapes)))
    else:
        tensors, notes = _leaves(source, strict=strict)
        builder = entropy.ReportBuilder("pytree", notes)
        weights = ((tensor, iter([tensor.codes])) for tensor in tensors)
    for tensor, parts in weights:
        counted = (entropy.measure_weight(codes, tensor.number_format) for codes in parts)
        counts = functools.reduce(operator.add, counted)
        builder.add(tensor.name, tensor.dialect, tensor.shape, counts, tensor.note)
        if progress:
            progress(counts.weights)
    return builder.build()


def _leaves(source: Any, *, strict: bool) -> tuple[Sequence[Tensor], tuple[str, ...]]:
    """The weights of a pytree, and what could not be recognised among them."""
    leaves = jax.tree_util.tree_flatten_with_path(source, is_leaf=_is_leaf)[0]
    leaves = [(path, leaf) for path, leaf in leaves if not isinstance(leaf, str)]
    names = trees.leaf_names([path for path, _ in leaves])
    weights: dict[str, Tensor] = {}
    arrays: dict[str, StoredArray] = {}
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if isinstance(leaf, QuantizedTensor):
            weights[name] = Tensor(name=name, weight=_checked(leaf, name), dialect=PLAIN)
        else:
            arrays[name] = of_leaf(name, leaf)
    reading = read(Contents(source=PYTREE, arrays=arrays), strict=strict)
    return [*weights.values(), *reading.tensors], reading.notes


def _is_leaf(node: Any) -> bool:
    return trees.is_compressed(node) or isinstance(node, QuantizedTensor)


def _checked(weight: QuantizedTensor, name: str) -> QuantizedTensor:
    try:
        return weight.check()
    except InputError as error:
        raise error.at(tensor=name) from error
