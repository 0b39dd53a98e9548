"""How an encoder fits codec `context` to tensors: classes, and what `fit_tables` makes tables of.

Nothing here is needed to decode. Integers throughout, so that every machine decides alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

import numpy as np

from jentropy.formats import ElementFormat

from . import rawbits, tables
from .coding import Coding
from .context_head import ELEMENTS, NAME, Head, classes_bits, raw_bits_of, write_head
from .fit_tables import Candidate, fit
from .rans import SLOTS

CLASSES = 16  # of rows, and of columns: four octaves, which no matrix seen needs
SAMPLE = 1 << 16  # codes whose tops are counted by context; of large tensors a 64th
SMALL = 1 << 14  # codes; smaller tensors are not worth classes
SUM_SCALE = 1023  # of a magnitude in the sums that classes are made of
IN_CACHE = 1 << 18  # codes whose magnitudes are in memory at a time
EXACT = 1 << 14  # so many magnitudes add to less than 2^24, which float32 does without rounding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What is looked at of a tensor to fit its tables.

    Attributes:
      element: format of its codes.
      row, column: uint8, class of each.
      low: the first top of `exact` and `histogram`.
      exact: int64[tops], how often each occurs.
      histogram: int64[row classes, column classes, tops] of some of its codes.
    """

    element: ElementFormat
    row: np.ndarray
    column: np.ndarray
    low: int
    exact: np.ndarray
    histogram: np.ndarray


def sample(codes: np.ndarray, exact: np.ndarray, element: ElementFormat) -> Sample | None:
    """Looks at a tensor; None if it is none for this codec.

    Args:
      codes: uint16 of the tensor's shape; a memory map is read in part.
      exact: int64[tops], how often each top occurs.
    """
    if element not in ELEMENTS or codes.size == 0:
        return None
    matrix = codes.reshape(-1, codes.shape[-1] if codes.shape else 1)
    rows, columns = matrix.shape
    row, column = np.zeros(rows, np.uint8), np.zeros(columns, np.uint8)
    if rows > 1 and columns > 1 and codes.size >= SMALL:
        median = int(np.searchsorted(np.cumsum(exact), codes.size // 2, side="right"))
        by_row, by_column = _sums(matrix, median, element)
        row, column = _classes(by_row), _classes(by_column)
    low, high = _range(exact)
    histogram = _histogram(matrix, row, column, (low, high), element)
    exact = np.add.reduceat(exact, [0, *range(low + 1, high)])
    return Sample(
        element=element, row=row, column=column, low=low, exact=exact, histogram=histogram
    )


def tops_of(counts: np.ndarray, element: ElementFormat) -> np.ndarray:
    """How often each top occurs, of counts of codes, int64[2^16]."""
    tops = 1 << (16 - raw_bits_of(element))
    return counts.reshape(2, tops, -1).sum(axis=(0, 2))


def tops_in(codes: np.ndarray, element: ElementFormat) -> np.ndarray:
    """The same of codes."""
    raw = raw_bits_of(element)
    return np.bincount(rawbits.top_of(codes.reshape(-1), raw), minlength=1 << (16 - raw))


def choose(samples: Sequence[Sample]) -> list[tuple[int, Coding]]:
    """About how many bytes each tensor takes, and its smallest coding."""
    return [
        (-(-cost // 8), Coding(codec=NAME, head=write_head(best)))
        for best, cost in (min(ways, key=itemgetter(1)) for ways in fits(samples))
    ]


def fits(samples: Sequence[Sample]) -> list[list[tuple[Head, int]]]:
    """Heads of each tensor without classes, with those of rows, and of rows and columns; bits."""
    candidates = [list(_candidates(one)) for one in samples]
    fitted = iter(fit([one for some in candidates for one in some]))
    return [list(itertools.islice(fitted, len(some))) for some in candidates]


def _candidates(seen: Sample) -> Iterator[Candidate]:
    row, column = seen.row, seen.column
    none = np.zeros(row.size, np.uint8), np.zeros(column.size, np.uint8)
    kinds, across, width = seen.histogram.shape
    both = np.zeros((kinds + across - 1, width), np.int64)
    for context, histogram in enumerate(seen.histogram):
        both[context : context + across] += histogram
    ways = [(seen.histogram.sum(axis=(0, 1))[None], *none)]
    if kinds > 1:
        ways.append((seen.histogram.sum(axis=1), row, none[1]))
    if across > 1:
        ways.append((both, row, column))
    for histogram, rows, columns in ways:
        yield Candidate(
            element=seen.element,
            histogram=histogram,
            rows=rows,
            columns=columns,
            low_top=seen.low,
            exact=seen.exact,
            class_bits=classes_bits(rows) + classes_bits(columns),
        )


def _range(exact: np.ndarray) -> tuple[int, int]:
    """Where the tops lie, but for the rarest, which no table will have in any context."""
    used = np.flatnonzero(exact)
    seen = np.flatnonzero(exact * (16 * SLOTS) >= exact.sum())
    margin = 2 * CLASSES
    low, high = int(seen[0]) - margin, int(seen[-1]) + margin
    return max(low, int(used[0])), min(high, int(used[-1])) + 1


def _histogram(
    codes: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    window: tuple[int, int],
    element: ElementFormat,
) -> np.ndarray:
    """Counts of a sample: int64[row classes, column classes, tops in the window].

    Tops beyond the window count as its ends.
    """
    rows, columns = codes.shape
    stride = max(1, codes.size // max(SAMPLE, codes.size >> 6))
    down = min(stride, max(1, rows // 64))
    down_places, across_places = _places(rows, down), _places(columns, -(-stride // down))
    sample = np.asarray(codes[down_places] if down > 1 else codes)
    if across_places.size < columns:
        sample = sample.take(across_places, axis=1)
    low, high = window
    shape = int(row.max()) + 1, int(column.max()) + 1, high - low
    begins = row[down_places].astype(np.int32) * (shape[1] * shape[2]) - low
    top = rawbits.top_of(sample, raw_bits_of(element))
    place = np.clip(top, low, high - 1, out=top).astype(np.int32)
    place += begins[:, None]
    place += column[across_places].astype(np.int32) * shape[2]
    return np.bincount(place.reshape(-1), minlength=math.prod(shape)).reshape(shape)


def _places(count: int, stride: int) -> np.ndarray:
    """One place in every `stride`, at odds with any period that data may have."""
    starts = np.arange(0, count, stride)
    jitter = (np.arange(starts.size) * 40503 + 12345 >> 4) % stride
    return np.minimum(starts + jitter, count - 1)


def _sums(codes: np.ndarray, median: int, element: ElementFormat) -> tuple[np.ndarray, np.ndarray]:
    """Sums of magnitudes over each row and each column, about 32 a code. int64 each.

    Products with ones, which run at several times the speed of a sum over rows or columns.

    Args:
      median: of the tops.
    """
    rows, columns = codes.shape
    integers, ones = _magnitudes(median, element), np.ones(EXACT, np.float32)
    by_row, by_column = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    for left in range(0, columns, EXACT):
        width = min(EXACT, columns - left)
        height = min(EXACT, max(1, IN_CACHE // width))
        for at in range(0, rows, height):
            part = integers.take(codes[at : at + height, left : left + width], mode="wrap")
            by_row[at : at + height] += (part @ ones[:width]).astype(np.int64)
            by_column[left : left + width] += (ones[: len(part)] @ part).astype(np.int64)
    return by_row, by_column


@lru_cache(maxsize=32)  # 256 KB each; medians of weights are few
def _magnitudes(median: int, element: ElementFormat) -> np.ndarray:
    """Magnitude of every code, cut to an integer below 1024, of the median about 32.

    Returns:
      float32[2^16].
    """
    assert element.bias is not None
    mantissa = element.field_bits("mantissa")
    typical = (median << (raw_bits_of(element) - 1) >> mantissa) - element.bias
    finite = ((1 << element.field_bits("exponent")) - 1 << mantissa) - 1  # the largest
    magnitude = np.minimum(np.arange(1 << 16, dtype=np.uint32) & 0x7FFF, np.uint32(finite))
    # As if subnormals were normal: close enough.
    bits = (magnitude << np.uint32(23 - mantissa)) + np.uint32((127 - element.bias) << 23)
    with np.errstate(over="ignore"):
        scaled = bits.view(np.float32) * np.float32(2.0) ** np.float32(min(127, 5 - typical))
    return np.floor(np.minimum(scaled, np.float32(SUM_SCALE)))


def _classes(sums: np.ndarray) -> np.ndarray:
    """Quarter octaves of sums, the CLASSES most populous in a row; others the nearest."""
    share = (sums << 20) // max(1, int(sums.max()) >> 6)  # of the largest, in 2^26 or a bit more
    share = np.maximum(share, 1) << 7
    level = np.searchsorted(tables.WEIGHTS[1::2], share, side="right")
    counts = np.bincount(level)
    low = 0
    if counts.size > CLASSES:
        inside = np.convolve(counts, np.ones(CLASSES, np.int64))[CLASSES - 1 :]
        low = int(np.argmax(inside))
    classes = np.clip(level - low, 0, min(CLASSES, counts.size) - 1)
    return (classes - classes.min()).astype(np.uint8)
