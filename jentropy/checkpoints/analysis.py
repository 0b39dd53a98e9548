"""The entropy report of a checkpoint or a pytree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jentropy import entropy
from jentropy.containers import trees
from jentropy.entropy import EntropyReport

from .checkpoint import Arrays, Tensor
from .opening import open_checkpoint, stored_leaf
from .progress import Progress, expect
from .reading import plain_tensor


def analyze(
    source: Any, progress: Progress | None = None, *, step: int | None = None
) -> EntropyReport:
    """Shannon entropy per field of every format in a checkpoint, and the magnitudes behind it.

    Args:
      source: a path that `open_checkpoint` takes, or a pytree of arrays or `CompressedTensor`.
      progress: called with the elements counted since the last call; see `progress.Progress`.
      step: the only step of the root of an Orbax `CheckpointManager` that is wanted.

    Returns:
      An `EntropyReport`; `.to_json()` gives plain data.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
      >>> report.formats["FP16"].entropy_bits
      0.0
    """
    if isinstance(source, str | Path):
        checkpoint = open_checkpoint(source, step=step)
        builder = entropy.ReportBuilder(str(source), checkpoint.notes)
        weights = checkpoint.read_all()
        shapes = (checkpoint.tensor(name).shape for name in checkpoint.names())
        expect(progress, sum(map(math.prod, shapes)))
    else:
        builder = entropy.ReportBuilder("pytree")
        weights = _leaves(source)
    for tensor, codes in weights:
        counts = entropy.measure_weight(codes, tensor.number_format)
        builder.add(tensor.name, tensor.dialect, tensor.shape, counts)
        if progress:
            progress(counts.weights)
    return builder.build()


def _leaves(source: Any) -> Iterator[tuple[Tensor, Arrays]]:
    leaves = jax.tree_util.tree_flatten_with_path(source, is_leaf=trees.is_compressed)[0]
    leaves = [(path, leaf) for path, leaf in leaves if not isinstance(leaf, str)]
    names = trees.leaf_names([path for path, _ in leaves])
    for name, (_, leaf) in zip(names, leaves, strict=True):
        values = trees.decompress(leaf) if trees.is_compressed(leaf) else leaf
        array = stored_leaf(name, trees.as_array(values, name), Path("pytree"))
        tensor = plain_tensor(name, array)
        yield tensor, tensor.codes
