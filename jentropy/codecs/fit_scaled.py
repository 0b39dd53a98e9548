"""How an encoder fits codec `scaled` to a tensor: its classes and its tables.

Nothing here is needed to decode. Integers throughout, so that every machine decides alike.
"""

from __future__ import annotations

import numpy as np

from jentropy.formats import RAW, ElementFormat
from jentropy.formats.packing import NIBBLE

from . import calls, fit_classes, tables
from .coding import Coding, Way
from .rans import SLOTS
from .scale_classes import Classes
from .scaled import MOST, NAME, Head, write_head
from .tables import BYTE

SMALL = 1 << 14  # codes; smaller tensors are not worth classes
SAMPLE = 1 << 18  # codes of a large tensor that tell whether classes are worth anything
MIN_GAIN = 100  # of a sample: one part in this, for which encoding and decoding take longer
RARE = 4  # a byte that fills less than one part in this of a slot escapes
TYPICAL = 5  # bits of the median magnitude in the sums that classes are made of
AT_ONCE = 1 << 18  # codes that are counted at a time
# Quarter octaves that make a class of rows and one of columns; 0: all are of one class.
STEPS = ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1), (2, 2))


def choose(codes: np.ndarray, counts: np.ndarray, element: ElementFormat) -> list[Way]:
    """About how many bytes a tensor of codes takes, and its smallest coding, if there is one.

    Args:
      codes: of the tensor's shape; there is a coding of those of one byte. A memory map is read in
        part, and whole where classes are worth it.
      counts: int64[256], how often each byte occurs.
    """
    if codes.size < SMALL or codes.dtype.itemsize > 1 or element.code_bits == NIBBLE:
        return []
    matrix = codes.reshape(-1, codes.shape[-1] if codes.shape else 1).view(np.uint8)
    if not fit_classes.may_have(*matrix.shape):
        return []
    row, column = map(fit_classes.of_sums, fit_classes.sums(matrix, _magnitudes(counts, element)))
    if not (row.any() or column.any()):
        return []
    shape = int(row.max()) + 1, int(column.max()) + 1
    places = fit_classes.places(len(matrix), max(1, matrix.size // SAMPLE))
    some = matrix if len(places) == len(matrix) else np.asarray(matrix[places])
    histogram = _histogram(some, (row[places], column), shape)
    best = min(_bits(*_tables(counts)) for counts, _ in _ways(histogram, row, column))
    plain = _bits(*_tables(histogram.sum(axis=(0, 1))[None]))
    if MIN_GAIN * best > (MIN_GAIN - 1) * plain:
        return []
    if some is not matrix:
        histogram = _histogram(matrix, (row, column), shape)
    ways = [_way(*way) for way in _ways(histogram, row, column)]
    size, head = min(ways, key=lambda way: way[0])
    return [(size, lambda: Coding(codec=NAME, head=write_head(head)))]


def _magnitudes(counts: np.ndarray, element: ElementFormat) -> np.ndarray:
    """Magnitude of every code, an integer, of the median (or the least above 0) about 2^TYPICAL.

    Of codes that are no numbers, their distance to the commonest one, as if they were a grid's.

    Returns:
      float32[256].
    """
    magnitude = np.zeros(BYTE, np.float32)
    if element.name == RAW:
        away = np.arange(BYTE) - int(counts.argmax()) & BYTE - 1
        magnitude[:] = np.minimum(away, BYTE - away)
    else:
        known = np.abs(element.decode(np.arange(1 << element.code_bits, dtype=np.uint8)))
        magnitude[: known.size] = np.where(np.isfinite(known), known, 0)
    order = np.argsort(magnitude, kind="stable")
    middle = magnitude[order[np.searchsorted(np.cumsum(counts[order]), counts.sum() // 2)]]
    typical = middle if middle > 0 else magnitude[magnitude > 0].min(initial=1)
    scaled = np.ldexp(magnitude.astype(np.float64), TYPICAL - int(np.frexp(typical)[1]))
    return np.floor(np.minimum(scaled, fit_classes.LARGEST)).astype(np.float32)


def _histogram(
    codes: np.ndarray, classes: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
    """Counts of codes of such classes of rows and columns. int64[row, column, 256], `shape` first.

    Args:
      codes: uint8[rows, columns].
    """
    row, column = (one.astype(np.uint16) for one in classes)
    counts = np.zeros(shape[0] * shape[1] * BYTE, np.int64)
    by_row, by_column = row * np.uint16(shape[1] << 8), column << np.uint16(8)
    step = max(1, AT_ONCE // codes.shape[1])
    for at in range(0, len(codes), step):
        place = by_row[at : at + step, None] + by_column
        place += codes[at : at + step]
        counts += np.bincount(place.reshape(-1), minlength=counts.size)
    return counts.reshape(*shape, BYTE)


def _ways(
    histogram: np.ndarray, row: np.ndarray, column: np.ndarray
) -> list[tuple[np.ndarray, Classes]]:
    """Counts int64[contexts, 256] for each of STEPS that fits, and their classes."""
    down, across, _ = histogram.shape
    ways = []
    for steps in STEPS:
        kinds = [
            np.arange(size) // step if step else np.zeros(size, np.int64)
            for size, step in zip((down, across), steps, strict=True)
        ]
        context = np.add.outer(*kinds)
        if 1 < context.max() + 1 <= MOST:
            counts = np.zeros((int(context.max()) + 1, BYTE), np.int64)
            np.add.at(counts, context, histogram)
            of_each = (
                kind.astype(np.uint8)[one] for kind, one in zip(kinds, (row, column), strict=True)
            )
            ways.append((counts, Classes(*of_each)))
    return ways


def _tables(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """Levels of tables, the counts of their symbols, the first symbol, and whether some escape.

    Args:
      counts: int64[contexts, 256].
    """
    total = np.maximum(1, counts.sum(axis=1, keepdims=True))
    common = counts * SLOTS * RARE >= total
    if common.any(axis=0).all():  # none is left to mark escapes
        common = counts > 0
    common |= (counts == counts.max(axis=1, keepdims=True)) & (counts > 0)
    used = np.flatnonzero(common.any(axis=0))
    first, last = int(used[0]), int(used[-1])
    inside = np.where(common, counts, 0)[:, first : last + 1]
    rare = counts.sum(axis=1) - inside.sum(axis=1)
    escapes = bool(rare.any())
    if escapes:
        inside = np.column_stack([inside, rare])
    levels = tables.levels_of_used(inside)
    empty = np.flatnonzero(~levels.any(axis=1))
    seen = np.flatnonzero(levels.any(axis=1))
    # A context without codes has its neighbour's table, which costs nothing to write.
    levels[empty] = levels[seen[np.maximum(0, np.searchsorted(seen, empty) - 1)]]
    return levels, inside, first, escapes


def _bits(levels: np.ndarray, counts: np.ndarray, first: int, escapes: bool) -> int:
    """Bits that codes of such counts take, with what escapes, without tables."""
    costs = tables.costs(tables.frequencies_of(levels))
    escaped = 8 * int(counts[:, -1].sum()) if escapes else 0
    return (int((counts * costs).sum()) >> tables.COST_BITS) + escaped


def _way(counts: np.ndarray, classes: Classes) -> tuple[int, Head]:
    """Bytes that a tensor takes with such classes, about, and its head."""
    levels, inside, first, escapes = _tables(counts)
    head = Head(first=first, levels=levels, escapes=escapes, classes=classes)
    bits = _bits(levels, inside, first, escapes) + tables.levels_bits(levels) + classes.bits()
    return -(-bits // 8) + 5 * calls.lane_count(int(counts.sum())), head
