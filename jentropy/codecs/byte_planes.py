"""Numbers split into planes of bytes, and put together again.

The first plane of a float of 16 bits or more is its exponent with as many leading mantissa bits as
fit a byte; what is left, sign first, follows in bytes:

    BF16   exponent 8                  | sign 1, mantissa 7
    FP16   exponent 5, mantissa 3      | sign 1, mantissa 7
    FP32   exponent 8                  | sign 1, mantissa 7 | mantissa 8 | mantissa 8

Other numbers are split into bytes from the most significant down. Packed codes (`coding.is_packed`)
and numbers of a byte are one plane of all bytes in the order of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from jentropy.formats import RAW, ElementFormat

from .coding import is_packed

Runs = tuple[tuple[int, int], ...]  # of bits: the lowest one and how many


@lru_cache
def runs_of(element: ElementFormat) -> tuple[Runs, ...]:
    """Runs of bits, most significant first, of each plane of a code that fills its number."""
    width = element.code_bits
    exponent = element.field_bits("exponent")
    if element.name == RAW or width <= 8 or not exponent:
        return tuple(((low, 8),) for low in reversed(range(0, 8 * element.dtype.itemsize, 8)))
    leading = 8 - exponent
    rest = element.field_bits("mantissa") - leading  # mantissa bits that follow the sign
    head = ((element.shift("exponent") - leading, 8),)
    tail = (((low, 8),) for low in reversed(range(0, rest - 7, 8)))
    return (head, ((width - 1, 1), (rest - 7, 7)), *tail)


def are_bytes(element: ElementFormat) -> bool:
    """Whether the planes of a code are its bytes."""
    return all(len(runs) == 1 for runs in runs_of(element))


def split(numbers: np.ndarray, element: ElementFormat) -> list[np.ndarray]:
    """Planes of numbers (unsigned integers, or RAW of any dtype), uint8[n] each."""
    flat = numbers.reshape(-1)
    if is_packed(element, flat.dtype):
        return [flat.view(np.uint8)]
    if are_bytes(element):
        by_number = flat.view(np.uint8).reshape(flat.size, flat.dtype.itemsize)
        return list(np.ascontiguousarray(by_number[:, ::-1].T))
    planes = []
    for runs in runs_of(element):
        value = np.zeros(flat.size, flat.dtype)
        for low, count in runs:
            mask = flat.dtype.type((1 << count) - 1)
            value = value << flat.dtype.type(count) | (flat >> flat.dtype.type(low)) & mask
        planes.append(value.astype(np.uint8))
    return planes


def merge(planes: Sequence[np.ndarray], element: ElementFormat, numbers: np.ndarray) -> None:
    """Writes the numbers of planes, [n]: the inverse of `split`."""
    if is_packed(element, numbers.dtype) or are_bytes(element):
        by_number = numbers.view(np.uint8).reshape(planes[0].size, len(planes))
        for i, plane in enumerate(reversed(planes)):
            by_number[:, i] = plane
        return
    kind = numbers.dtype.type
    numbers[:] = 0
    for runs, plane in zip(runs_of(element), planes, strict=True):
        wide, below = plane.astype(kind), 8
        for low, count in runs:
            below -= count
            numbers |= (wide >> kind(below) & kind((1 << count) - 1)) << kind(low)


def plane_count(element: ElementFormat, dtype: np.dtype) -> int:
    """Planes of numbers of a dtype that hold codes of an element format."""
    return 1 if is_packed(element, dtype) else len(runs_of(element))


def plane_size(size: int, element: ElementFormat, dtype: np.dtype) -> int:
    """Bytes of a plane of `size` such numbers."""
    return size * dtype.itemsize if is_packed(element, dtype) else size


def histograms(slices: Sequence[np.ndarray], element: ElementFormat) -> list[np.ndarray]:
    """How often each byte occurs in every plane, int64[256] each.

    Args:
      slices: counts of bits 16 i and up of the codes, as `entropy.Counts` holds them.
    """
    return [_marginal(slices[runs[0][0] // 16], runs) for runs in runs_of(element)]


def _marginal(counts: np.ndarray, runs: Runs) -> np.ndarray:
    """How often each value of a plane occurs, from counts of the 16 bits that it lies in."""
    assert len({low // 16 for low, _ in runs}) == 1, "a plane crosses no slice"
    shape, at = [], counts.size.bit_length() - 1
    for low, count in runs:  # what is above the run, and the run
        shape += [1 << (at - low % 16 - count), 1 << count]
        at = low % 16
    shape.append(1 << at)
    return counts.reshape(shape).sum(axis=tuple(range(0, len(shape), 2))).reshape(-1)
