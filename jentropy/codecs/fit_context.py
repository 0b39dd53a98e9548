"""How an encoder fits codec `context` to a tensor: its classes, its window and its tables.

Nothing here is needed to decode. Integers throughout, so that every machine decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from jentropy.formats import ElementFormat

from . import calls, fit_classes, rawbits, tables
from .coding import Coding
from .context import IN_FULL
from .context_head import (
    ELEMENTS,
    ESCAPE,
    NAME,
    TABLES,
    Head,
    raw_bits_of,
    write_head,
)
from .rans import SLOTS
from .scale_classes import Classes

SAMPLE = 1 << 16  # codes whose tops are counted by context; of large tensors a 64th
SMALL = 1 << 14  # codes; smaller tensors are not worth classes
SHARE_BITS = 28  # of a share of a tensor in an estimate


def choose(
    codes: np.ndarray, counts: np.ndarray, element: ElementFormat
) -> list[tuple[int, Coding]]:
    """About how many bytes a tensor of codes takes, and its smallest coding, if there is one.

    Args:
      codes: uint16 of the tensor's shape; a memory map is read in part.
      counts: int64[2^16], how often each code occurs.
    """
    if element not in ELEMENTS or codes.size == 0:
        return []
    matrix = codes.reshape(-1, codes.shape[-1] if codes.shape else 1)
    best, cost = min(candidates(matrix, counts, element), key=lambda item: item[1])
    return [(-(-cost // 8), Coding(codec=NAME, head=write_head(best)))]


def candidates(
    codes: np.ndarray, counts: np.ndarray, element: ElementFormat
) -> Iterator[tuple[Head, int]]:
    """Heads with no classes, with classes of rows, and of rows and columns; bits of each."""
    rows, columns = codes.shape
    tops = 1 << (16 - raw_bits_of(element))
    exact = counts.reshape(2, tops, -1).sum(axis=(0, 2))
    row, column = no_row, no_column = np.zeros(rows, np.uint8), np.zeros(columns, np.uint8)
    if rows > 1 and columns > 1 and codes.size >= SMALL:
        median = int(np.searchsorted(np.cumsum(exact), codes.size // 2, side="right"))
        sums = fit_classes.sums(codes, _magnitudes(median, element))
        row, column = map(fit_classes.of_sums, sums)
    low, high = _range(exact)
    histogram = _histogram(codes, row, column, (low, high), element)
    exact = np.add.reduceat(exact, [0, *range(low + 1, high)])
    yield _candidate(element, histogram.sum(axis=(0, 1))[None], no_row, no_column, low, exact)
    if len(histogram) > 1:
        yield _candidate(element, histogram.sum(axis=1), row, no_column, low, exact)
    kinds, across, width = histogram.shape
    if across > 1:
        both = np.zeros((kinds + across - 1, width), np.int64)
        np.add.at(both, np.add.outer(np.arange(kinds), np.arange(across)), histogram)
        yield _candidate(element, both, row, column, low, exact)


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
    stride = max(1, codes.size // max(SAMPLE, codes.size >> 6))
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


def _candidate(
    element: ElementFormat,
    histogram: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    low_top: int,
    exact: np.ndarray,
) -> tuple[Head, int]:
    """A head, and the bits that a tensor takes with it.

    Args:
      histogram: int64[contexts, tops] of a sample.
      low_top: the first of those tops.
      exact: int64[tops] of the whole tensor: a sample may miss what lies at its period.
    """
    contexts, tops = histogram.shape
    size = int(exact.sum())
    number = min(TABLES, 1 << (contexts - 1).bit_length())
    # Top t of context c lies at t - c + contexts - 1.
    moved = np.zeros((number, tops + contexts - 1), np.int64)
    for c, counts in enumerate(histogram):
        begin = contexts - 1 - c
        moved[c % number, begin : begin + tops] += counts
    low, high = _window(moved.sum(axis=0), ESCAPE - contexts + 1)
    counts = np.empty((number, high - low + 2), np.int64)
    counts[:, :-1] = moved[:, low : high + 1]
    counts[:, -1] = moved.sum(axis=1) - counts[:, :-1].sum(axis=1)
    # What was not seen with a table may come: eight symbols, spread as over all of them.
    pooled = counts.sum(axis=0)
    spread = 64 * 8 * pooled // max(1, int(pooled.sum()))
    levels = tables.levels_of(counts * 64 + np.maximum(1, spread))
    first = low_top + low - contexts + 1
    base = max(0, first - 200)
    head = Head(
        element=element,
        first=first % (1 << 16),
        count=high - low + 1,
        levels=levels,
        classes=Classes(rows, columns),
        base=base,
    )
    # Cost of every top in every context.
    place = np.arange(tops) + (contexts - 1 - low) - np.arange(contexts)[:, None]
    escaped = (place < 0) | (place >= head.count)
    place[escaped] = head.count
    table = np.arange(contexts)[:, None] % number
    costs = tables.costs(tables.frequencies_of(levels))[table, place]
    top = np.arange(low_top, low_top + tops)
    short = (top == 0) | (top > base) & (top < base + IN_FULL)
    costs += escaped * (np.where(short, 8, 24) << tables.COST_BITS)
    bits = _coded_bits(histogram, costs, exact) + head.raw_bits * size
    bits += tables.levels_bits(levels) + head.classes.bits()
    return head, bits + 24 * calls.lane_count(size)


def _coded_bits(histogram: np.ndarray, costs: np.ndarray, exact: np.ndarray) -> int:
    """Bits of a tensor's tops and escapes.

    The sample says how tops and contexts go together; where it has more or less of a top than the
    tensor, the difference counts with the top's mean cost over the contexts.

    Args:
      histogram: int64[contexts, tops] of the sample.
      costs: int64[contexts, tops] in 2^-COST_BITS bit.
      exact: int64[tops] of the tensor.
    """
    size, sampled = int(exact.sum()), int(histogram.sum())
    average = int((histogram * costs).sum()) * size // sampled
    share = (histogram.sum(axis=1) << 10) // sampled
    mean = share @ costs >> 10
    excess = (exact << SHARE_BITS) // size - (histogram.sum(axis=0) << SHARE_BITS) // sampled
    more = int(excess @ mean) * size >> SHARE_BITS
    return max(0, average + more) >> tables.COST_BITS


def _window(histogram: np.ndarray, most: int) -> tuple[int, int]:
    """First and last top worth a symbol of their own: at least a quarter of a slot.

    Where they lie further apart than `most`, as zeros and weights do, those around most codes.
    """
    seen = np.flatnonzero(histogram * (4 * SLOTS) >= histogram.sum())
    if seen[-1] - seen[0] >= most:
        below = np.concatenate([[0], np.cumsum(histogram)])
        begin = int(np.argmax(below[most:] - below[:-most]))
        seen = seen[(seen >= begin) & (seen < begin + most)]
    return int(seen[0]), int(seen[-1])
