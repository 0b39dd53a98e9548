"""How an encoder puts rows and columns into classes: by the sums of their magnitudes.

Integers throughout, so that every machine decides alike.
"""

from __future__ import annotations

import numpy as np

from . import tables

MOST = 16  # classes of rows, and of columns: four octaves, which no matrix seen needs
LARGEST = 1023  # magnitude in a sum
_LINES = 1 << 22  # rows, or columns, that have classes: sums of so many take 160 MiB
_IN_CACHE = 1 << 18  # codes whose magnitudes are in memory at a time
_EXACT = 1 << 14  # so many magnitudes add to less than 2^24, which float32 does without rounding


def places(count: int, stride: int) -> np.ndarray:
    """One place in every `stride`, at odds with any period that data may have."""
    starts = np.arange(0, count, stride)
    jitter = (np.arange(starts.size) * 40503 + 12345 >> 4) % stride
    return np.minimum(starts + jitter, count - 1)


def may_have(rows: int, columns: int) -> bool:
    """Whether a matrix of such a shape is put into classes."""
    return min(rows, columns) > 1 and max(rows, columns) <= _LINES


def sums(codes: np.ndarray, magnitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of magnitudes over each row and each column. int64 each.

    Products with ones, which run at several times the speed of a sum over rows or columns.

    Args:
      codes: unsigned integers [rows, columns].
      magnitudes: float32 of every code, integers up to LARGEST.
    """
    rows, columns = codes.shape
    ones = np.ones(_EXACT, np.float32)
    by_row, by_column = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    for left in range(0, columns, _EXACT):
        width = min(_EXACT, columns - left)
        height = min(_EXACT, max(1, _IN_CACHE // width))
        for at in range(0, rows, height):
            part = magnitudes.take(codes[at : at + height, left : left + width], mode="wrap")
            by_row[at : at + height] += (part @ ones[:width]).astype(np.int64)
            by_column[left : left + width] += (ones[: len(part)] @ part).astype(np.int64)
    return by_row, by_column


def of_sums(totals: np.ndarray) -> np.ndarray:
    """Quarter octaves of sums, the MOST most populous in a row; others the nearest."""
    # Of the largest, in 2^26 or a bit more.
    share = (totals << 20) // max(1, int(totals.max()) >> 6)
    share = np.maximum(share, 1) << 7
    level = np.searchsorted(tables.WEIGHTS[1::2], share, side="right")
    counts = np.bincount(level)
    low = 0
    if counts.size > MOST:
        inside = np.convolve(counts, np.ones(MOST, np.int64))[MOST - 1 :]
        low = int(np.argmax(inside))
    classes = np.clip(level - low, 0, min(MOST, counts.size) - 1)
    return (classes - classes.min()).astype(np.uint8)
