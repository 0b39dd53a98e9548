"""Parts of archived tensors: only the chunks that a part touches are read and decoded."""

from __future__ import annotations

from typing import Any

import numpy as np

from jentropy.errors import InputError

from . import coder
from .chunks import coded_chunks
from .tensor import CompressedTensor, dtype_named


def decompress_slice(tensor: CompressedTensor, index: Any, name: str = "") -> np.ndarray:
    """Some of a tensor's elements, bit for bit.

    Args:
      tensor: an archived tensor.
      index: integers, slices of any step, `...`, or a tuple of them, as of a NumPy array.
      name: for messages.

    Returns:
      What indexing the whole tensor would give, in its dtype.

    Raises:
      InputError: an index that the tensor's shape does not have.
      ChecksumError, CorruptError: damaged data.

    Example:
      >>> import numpy as np, jentropy
      >>> packed = jentropy.compress(np.arange(12, dtype=np.int32).reshape(4, 3))
      >>> jentropy.decompress_slice(packed, np.s_[1:3, 0]).tolist()
      [3, 6]
    """
    header = tensor.header
    ranges, final = _ranges(header.shape, index, name)
    rows, step = _rows(header.shape, ranges), header.chunk_weights
    length = header.shape[-1] if header.shape else 1
    picked = ranges[-1] if ranges else range(1)
    low, high = (min(picked), max(picked) + 1) if len(picked) else (0, 0)
    values = np.empty((rows.size, high - low), dtype_named(header.dtype))
    first = (rows * length + low) // step
    last = (rows * length + high - 1) // step
    wanted = set() if not values.size else set(first.tolist()) | set(last.tolist())
    if length > step and values.size:  # a row of several chunks
        wanted.update(i for a, b in zip(first, last, strict=True) for i in range(a, b + 1))
    numbers = sorted(wanted)
    for number, (_, codes) in zip(
        numbers, coder.decode(coded_chunks(name, tensor, wanted)), strict=True
    ):
        _copy(codes.view(values.dtype), number * step, rows * length + low, values)
    box = values.reshape(*(len(r) for r in ranges[:-1]), high - low)
    columns = slice(None) if picked.step == 1 else np.asarray(picked) - low
    return np.ascontiguousarray(box[..., columns]).reshape([len(r) for r in final])


def _ranges(shape: tuple[int, ...], index: Any, name: str) -> tuple[list[range], list[range]]:
    """Positions along every axis, and those of them that stay axes of the result."""
    given = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, part in enumerate(given) if part is Ellipsis]
    if len(dots) == 1:
        at = dots[0]
        given[at : at + 1] = [slice(None)] * (len(shape) - len(given) + 1)
    given += [slice(None)] * (len(shape) - len(given))
    every: list[range] = []
    final: list[range] = []
    for size, part in zip(shape, given, strict=False):
        try:
            if isinstance(part, slice):
                every.append(range(size)[part])
                final.append(every[-1])
            elif isinstance(part, int | np.integer) and not isinstance(part, bool):
                at = range(size)[part]
                every.append(range(at, at + 1))
        except (IndexError, TypeError, ValueError):
            break
    if len(given) != len(shape) or len(every) != len(shape):
        raise InputError(
            "index",
            tensor=name,
            expected=f"integers and slices of {list(shape)}",
            found=f"{index!r:.60}",
        )
    return every, final


def _rows(shape: tuple[int, ...], ranges: list[range]) -> np.ndarray:
    """Numbers of the rows (runs of the last axis) that are touched. int64[rows]."""
    rows = np.zeros(1, np.int64)
    for size, picked in zip(shape[:-1], ranges[:-1], strict=True):
        rows = (rows[:, None] * size + np.asarray(picked, np.int64)).reshape(-1)
    return rows


def _copy(codes: np.ndarray, start: int, starts: np.ndarray, values: np.ndarray) -> None:
    """Puts a chunk's elements into the rows of `values` that they belong to.

    Args:
      codes: elements from `start` of the flat tensor on.
      starts: where each row of `values` begins in the flat tensor.
    """
    stop, width = start + codes.size, values.shape[1]
    inside = np.flatnonzero((starts >= start) & (starts + width <= stop))
    if inside.size:
        values[inside] = codes[(starts[inside] - start)[:, None] + np.arange(width)]
    across = (starts < stop) & (starts + width > start)
    across[inside] = False
    for row in np.flatnonzero(across):
        begin, end = max(start, starts[row]), min(stop, starts[row] + width)
        values[row, begin - starts[row] : end - starts[row]] = codes[begin - start : end - start]
