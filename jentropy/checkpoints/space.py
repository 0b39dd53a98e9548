"""How many bytes arrays will take when they are compressed, guessed from samples before any is."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from operator import itemgetter

import numpy as np

from jentropy.entropy import shannon_bits
from jentropy.formats import codes_of

from .contents import StoredArray

SAMPLES, SAMPLE_BYTES = 32, 1 << 16
CERTAIN = 0.8  # of a guess: arrays that take less have not been seen
UNREAD = 0.4  # of the bytes of arrays that are not mapped: they are not read for a guess


def least_bytes(arrays: Iterable[StoredArray]) -> int:
    """Bytes that mapped arrays will take at the least, by the entropies of bytes at their places.

    Args:
      arrays: the largest ones are sampled, and stand for all.

    Example:
      >>> least_bytes([])
      0
    """
    sized = [(array.nbytes, array) for array in arrays]
    some = (one for one in sized if one[0])
    sampled = heapq.nlargest(SAMPLES, some, key=itemgetter(0))  # of equal ones the first
    shrunk = sum(_ratio(array) * nbytes for nbytes, array in sampled)
    whole = sum(nbytes for nbytes, _ in sampled)
    return int(CERTAIN * sum(nbytes for nbytes, _ in sized) * shrunk / max(1, whole))


def _ratio(array: StoredArray) -> float:
    """Of compressed bytes to those of a sample from an array's middle."""
    numbers = codes_of(array.read()).reshape(-1)
    count = SAMPLE_BYTES // numbers.dtype.itemsize
    begin = max(0, (numbers.size - count) // 2)
    part = np.ascontiguousarray(numbers[begin : begin + count])
    columns = part.view(np.uint8).reshape(part.size, -1).T
    bits = sum(shannon_bits(np.bincount(column, minlength=256)) for column in columns)
    return bits / 8 / len(columns)
