"""How an encoder fits codec `context` to tensors: classes, and what `fit_tables` makes tables of.

Nothing here is needed to decode. Integers throughout, so that every machine decides alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter

import numpy as np

from jentropy.formats import ElementFormat

from . import fit_classes, rawbits
from .coding import Coding, Way
from .context_head import ELEMENTS, NAME, Head, raw_bits_of, write_head
from .fit_tables import Candidate, fit
from .rans import SLOTS
from .scale_classes import Classes

SAMPLE = 1 << 16  # codes whose tops are counted by context; of large tensors a 64th
MOST_SAMPLE = 1 << 25  # of those of over 4 GiB
SMALL = 1 << 14  # codes; smaller tensors are not worth classes


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
    if fit_classes.may_have(rows, columns) and codes.size >= SMALL:
        median = int(np.searchsorted(np.cumsum(exact), codes.size // 2, side="right"))
        sums = fit_classes.sums(matrix, _magnitudes(median, element))
        row, column = map(fit_classes.of_sums, sums)
    low, high = _range(exact)
    histogram = _histogram(matrix, row, column, (low, high), element)
    exact = np.add.reduceat(exact, [0, *range(low + 1, high)])
    return Sample(
        element=element, row=row, column=column, low=low, exact=exact, histogram=histogram
    )


def sample_of_counts(exact: np.ndarray, element: ElementFormat) -> Sample:
    """What is known of codes of one axis that are counted but not there.

    Args:
      exact: int64[tops], how often each top occurs, not all 0.
    """
    low, high = _range(exact)
    exact = np.add.reduceat(exact, [0, *range(low + 1, high)])
    none = np.zeros(1, np.uint8)
    return Sample(
        element=element, row=none, column=none, low=low, exact=exact, histogram=exact[None, None]
    )


def tops_of(counts: np.ndarray, element: ElementFormat) -> np.ndarray:
    """How often each top occurs, of counts of codes, int64[2^16]."""
    tops = 1 << (16 - raw_bits_of(element))
    return counts.reshape(2, tops, -1).sum(axis=(0, 2))


def tops_in(codes: np.ndarray, element: ElementFormat) -> np.ndarray:
    """The same of codes."""
    raw = raw_bits_of(element)
    return np.bincount(rawbits.top_of(codes.reshape(-1), raw), minlength=1 << (16 - raw))


def choose(samples: Sequence[Sample]) -> list[Way]:
    """About how many bytes each tensor takes, and its smallest coding."""
    best = (min(ways, key=itemgetter(1)) for ways in fits(samples))
    return [(-(-cost // 8), partial(_coding, head)) for head, cost in best]


def _coding(head: Head) -> Coding:
    return Coding(codec=NAME, head=write_head(head))


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
            classes=Classes(rows, columns),
            low_top=seen.low,
            exact=seen.exact,
        )


def _range(exact: np.ndarray) -> tuple[int, int]:
    """Where the tops lie, but for the rarest, which no table will have in any context."""
    used = np.flatnonzero(exact)
    seen = np.flatnonzero(exact * (16 * SLOTS) >= exact.sum())
    margin = 2 * fit_classes.MOST
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
    stride = max(1, codes.size // max(SAMPLE, min(codes.size >> 6, MOST_SAMPLE)))
    down = min(stride, max(1, rows // 64))
    down_places = fit_classes.places(rows, down)
    across_places = fit_classes.places(columns, -(-stride // down))
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
    return np.floor(np.minimum(scaled, np.float32(fit_classes.LARGEST)))
