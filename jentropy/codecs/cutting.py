"""Numbers cut into planes of bytes, and put together again.

The first plane of a float of 16 bits or more is its exponent with as many leading mantissa bits as
fit a byte; what is left, sign first, follows in bytes:

    BF16   exponent 8                  | sign 1, mantissa 7
    FP16   exponent 5, mantissa 3      | sign 1, mantissa 7
    FP32   exponent 8                  | sign 1, mantissa 7 | mantissa 8 | mantissa 8

Other numbers are cut into bytes from the most significant down. Packed codes of 4 or 8 bits, and
numbers of a byte, are one plane of all bytes in the order of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from jentropy.formats import RAW, ElementFormat, code_dtype

from .coding import Layout

BYTE = 256


@lru_cache
def runs_of(element: ElementFormat) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Runs of bits (lowest bit, bits), most significant first, of each plane of a code."""
    width = element.code_bits
    exponent = element.field_bits("exponent")
    if element.name == RAW or width <= 8 or not exponent:
        return tuple(((low, 8),) for low in reversed(range(0, 8 * element.dtype.itemsize, 8)))
    leading = 8 - exponent
    rest = element.field_bits("mantissa") - leading  # mantissa bits that follow the sign
    head = ((element.shift("exponent") - leading, 8),)
    tail = (((low, 8),) for low in reversed(range(0, rest - 7, 8)))
    return (head, ((width - 1, 1), (rest - 7, 7)), *tail)


def split(numbers: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """Planes of numbers (unsigned integers, or RAW of any dtype), uint8[n] each."""
    if layout.octets:
        return [numbers.reshape(-1).view(np.uint8)]
    runs = runs_of(layout.element)
    if all(len(plane) == 1 for plane in runs):
        octets = numbers.reshape(-1).view(np.uint8).reshape(numbers.size, -1)
        return list(np.ascontiguousarray(octets[:, ::-1].T))
    flat = numbers.reshape(-1)
    planes = []
    for plane in runs:
        value = np.zeros(flat.size, flat.dtype)
        for low, count in plane:
            mask = flat.dtype.type((1 << count) - 1)
            value = value << flat.dtype.type(count) | (flat >> flat.dtype.type(low)) & mask
        planes.append(value.astype(np.uint8))
    return planes


def merge(planes: Sequence[np.ndarray], layout: Layout) -> np.ndarray:
    """Numbers of planes: the inverse of `split`."""
    dtype = code_dtype(layout.element.dtype)
    if layout.octets:
        return planes[0].view(dtype)
    runs = runs_of(layout.element)
    if all(len(plane) == 1 for plane in runs):
        octets = np.stack(list(reversed(planes)), axis=-1)
        return np.ascontiguousarray(octets).reshape(-1).view(dtype)
    codes = np.zeros(planes[0].size, dtype)
    for plane, row in zip(runs, planes, strict=True):
        wide, below = row.astype(dtype), 8
        for low, count in plane:
            below -= count
            part = wide >> dtype.type(below) & dtype.type((1 << count) - 1)
            codes |= part << dtype.type(low)
    return codes


def plane_count(layout: Layout) -> int:
    """Planes of a layout."""
    return 1 if layout.octets else len(runs_of(layout.element))


def plane_size(size: int, layout: Layout) -> int:
    """Bytes of a plane of `size` numbers."""
    return size * layout.element.dtype.itemsize if layout.octets else size


def histograms(slices: Sequence[np.ndarray], layout: Layout) -> list[np.ndarray]:
    """How often each byte occurs in every plane, int64[256] each.

    Args:
      slices: counts of bits 16 i and up of the numbers, as `entropy.Counts` holds them.
    """
    return [_marginal(slices[plane[0][0] // 16], plane) for plane in runs_of(layout.element)]


def _marginal(counts: np.ndarray, plane: Sequence[tuple[int, int]]) -> np.ndarray:
    """How often each value of a plane occurs, from counts of the 16 bits that it lies in."""
    assert len({low // 16 for low, _ in plane}) == 1, "a plane crosses no slice"
    shape, at = [], counts.size.bit_length() - 1
    for low, bits_ in plane:  # what is above the run, and the run
        shape += [1 << (at - low % 16 - bits_), 1 << bits_]
        at = low % 16
    shape.append(1 << at)
    return counts.reshape(shape).sum(axis=tuple(range(0, len(shape), 2))).reshape(-1)
