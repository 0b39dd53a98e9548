"""Arrays on the host that JAX on CPU takes as they are: others are copied on the way in."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64  # bytes; XLA's vectors are no wider


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """A new array, not filled."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    return room[begin : begin + size].view(dtype).reshape(shape)


def joined(*parts: np.ndarray) -> np.ndarray:
    """Arrays of one dtype, one after another."""
    return np.concatenate(parts, out=empty((sum(part.size for part in parts),), parts[0].dtype))
