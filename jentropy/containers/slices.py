"""Parts of archived tensors: only the chunks that a part touches are read and decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np

from jentropy.errors import InputError

from . import coder
from .chunks import coded_chunks
from .tensor import CompressedTensor, TensorHeader, dtype_named


def decompress_slice(tensor: CompressedTensor, index: Any, name: str = "") -> np.ndarray:
    """Some of a tensor's elements, bit for bit.

    Args:
      tensor: an archived tensor.
      index: integers, slices of any step, `...`, or a tuple of them, as of a NumPy array.
      name: for messages.

    Returns:
      What indexing the tensor would give, in its dtype.

    Raises:
      InputError: an index that the tensor's shape does not have.
      ChecksumError, CorruptError: damaged data.

    Example:
      >>> import numpy as np, jentropy
      >>> packed = jentropy.compress(np.arange(12, dtype=np.int32).reshape(4, 3))
      >>> jentropy.decompress_slice(packed, np.s_[1:3, 0]).tolist()
      [3, 6]
    """
    return part_of(tensor.header, index, partial(coded_chunks, name, tensor), name)


def part_of(
    header: TensorHeader,
    index: Any,
    chunks: Callable[[Collection[int]], Iterable[coder.Coded]],
    name: str = "",
) -> np.ndarray:
    """The same of a tensor whose chunks lie elsewhere.

    Args:
      header: of the tensor.
      index: as of `decompress_slice`.
      chunks: (numbers) -> the chunks of these numbers, in order.
      name: for messages.

    Returns:
      As of `decompress_slice`.
    """
    dtype, step = dtype_named(header.dtype), header.chunk_weights
    shape, start, strides = _selected(header.shape, index, name)
    if 0 in shape:
        return np.empty(shape, dtype)
    axes = list(zip(shape, strides, strict=True))
    # A row is what is wanted of a run of the last axis; its elements and what lies between them.
    along_row = bool(axes) and abs(strides[-1]) < header.shape[-1]
    count, stride = axes.pop() if along_row else (1, 1)
    rows = np.array([start + min(0, (count - 1) * stride)])
    for size, apart in axes:
        rows = np.add.outer(rows, np.arange(size) * apart).reshape(-1)
    values = np.empty((rows.size, (count - 1) * abs(stride) + 1), dtype)
    ends = rows + values.shape[1] - 1
    touched = set(zip((rows // step).tolist(), (ends // step).tolist(), strict=True))
    wanted = {i for first, last in touched for i in range(first, last + 1)}
    for item, codes in coder.decode(chunks(wanted)):
        _copy(codes.view(dtype), item.span.start, rows, values)
    return np.ascontiguousarray(values[:, ::stride]).reshape(shape)


def _selected(
    shape: tuple[int, ...], index: Any, name: str
) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """Shape of what an index selects, its first element in the flat tensor, and its strides.

    NumPy indexes an array of a byte an element of which there is but the first: indices of these
    kinds never read one.
    """
    parts = index if isinstance(index, tuple) else (index,)
    parts = parts if any(part is Ellipsis for part in parts) else (*parts, ...)
    first = np.zeros(1, np.uint8)
    strides = [math.prod(max(1, n) for n in shape[i + 1 :]) for i in range(len(shape))]
    tensor = np.lib.stride_tricks.as_strided(first, shape, strides)
    kinds = int | np.integer | slice | EllipsisType
    try:
        if any(isinstance(part, bool) or not isinstance(part, kinds) for part in parts):
            raise TypeError(index)
        view = tensor[parts]
    except (IndexError, TypeError, ValueError) as error:
        expected = f"integers and slices of {list(shape)}"
        raise InputError("index", tensor=name, expected=expected, found=f"{index!r:.60}") from error
    return view.shape, view.ctypes.data - first.ctypes.data, view.strides


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
