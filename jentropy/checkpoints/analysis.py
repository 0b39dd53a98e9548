"""The entropy report of a checkpoint or a pytree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
    for tensor, values in open_checkpoint(source).read_all() if is_path else _leaves(source):
        number_format = formats.format_named(tensor.format, tensor.dtype)
        counts = entropy.measure(formats.codes_of(values), number_format)
        builder.add(tensor.name, tensor.dialect, tensor.shape, counts)
        if progress:
            progress(counts.weights)
    return builder.build()


def _leaves(source: Any) -> Iterator[tuple[Tensor, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(source, is_leaf=trees.is_compressed)[0]:
        name = trees.leaf_name(path)
        values = trees.decompress(leaf) if trees.is_compressed(leaf) else leaf
        values = trees.as_array(values, name)
        yield plain_tensor(name, values), values
