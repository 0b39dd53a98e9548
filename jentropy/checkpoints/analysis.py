"""The entropy report of a checkpoint or a pytree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jentropy import entropy, formats
from jentropy.containers import trees
from jentropy.entropy import EntropyReport

from .checkpoint import Tensor
from .dialects.plain import plain_tensor
from .opening import open_checkpoint

Progress = Callable[[int], None]


def analyze(source: Any, progress: Progress | None = None) -> EntropyReport:
    """Shannon entropy per field of every format in a checkpoint, and the magnitudes behind it.

    Args:
      source: a path that `open_checkpoint` takes, or a pytree of arrays or `CompressedTensor`.
      progress: called with the number of elements counted since the last call.

    Returns:
      An `EntropyReport`; `.to_json()` gives plain data.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
      >>> report.formats["FP16"].entropy_bits
      0.0
    """
    is_path = isinstance(source, str | Path)
    builder = entropy.ReportBuilder(str(source) if is_path else "pytree")
    for tensor in _checkpoint_tensors(source) if is_path else _tree_tensors(source):
        number_format = formats.format_named(tensor.format, tensor.dtype)
        counts = entropy.measure(tensor.codes["code"], number_format)
        builder.add(tensor.name, tensor.dialect, tensor.shape, counts)
        if progress:
            progress(counts.weights)
    return builder.build()


def _checkpoint_tensors(source: str | Path) -> Iterator[Tensor]:
    checkpoint = open_checkpoint(source)
    for name in checkpoint.names():
        yield checkpoint.tensor(name)


def _tree_tensors(source: Any) -> Iterator[Tensor]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(source, is_leaf=trees.is_compressed)[0]:
        name = trees.leaf_name(path)
        values = trees.decompress(leaf) if trees.is_compressed(leaf) else leaf
        yield plain_tensor(name, trees.as_array(values, name))
