"""Windows and tables of codec `context` for many candidates at once, and the bits of each.

A candidate is a tensor and a way to tell contexts apart. A fit is some sixty small steps: done for
all candidates together they cost a fraction of what they would for each alone, most of which is
Python's, under its lock. They are NumPy's, not a program of XLA's: integers of 64 bits that no mode
of JAX's has to allow, and nothing to compile, which would take longer than hundreds of fits.

Arrays of candidates of all shapes are *ragged*: elements of all in one axis, with the number of the
candidate, the context and the top of each. Integers throughout (sums of floats that hold them
exactly apart), so that every machine decides alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jentropy.formats import ElementFormat

from . import calls, tables
from .context import IN_FULL
from .context_head import ESCAPE, TABLES, Head, raw_bits_of
from .rans import SLOTS
from .scale_classes import Classes

SHARE_BITS = 28  # of a share of a tensor in an estimate
BELOW = 200  # tops below the first of a window that an escape may tell in a byte


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A tensor and the classes that tell its contexts apart.

    Attributes:
      element: format of its codes.
      histogram: int64[contexts, tops] of a sample.
      classes: of rows and columns.
      low_top: the first of those tops.
      exact: int64[tops] of the whole tensor: a sample may miss what lies at its period.
    """

    element: ElementFormat
    histogram: np.ndarray
    classes: Classes
    low_top: int
    exact: np.ndarray


def fit(candidates: Sequence[Candidate]) -> list[tuple[Head, int]]:
    """The head of each candidate, and the bits that its tensor takes with it."""
    if not candidates:
        return []
    contexts = np.array([len(one.histogram) for one in candidates])
    tops = np.array([one.histogram.shape[1] for one in candidates])
    number = np.array([min(TABLES, 1 << int(c - 1).bit_length()) for c in contexts])
    low_top = np.array([one.low_top for one in candidates])
    size = np.array([int(one.exact.sum()) for one in candidates])
    # The ragged elements.
    seen = np.concatenate([one.histogram.reshape(-1) for one in candidates])
    row_begins = np.concatenate([[0], np.cumsum(np.repeat(tops, contexts))[:-1]])
    begins = np.concatenate([[0], np.cumsum(contexts * tops)[:-1]])
    of_row = np.repeat(np.arange(len(candidates)), contexts)  # candidate of each context
    context_of_row = np.arange(of_row.size) - np.repeat(np.cumsum(contexts) - contexts, contexts)
    lengths = tops[of_row]
    one = np.repeat(of_row, lengths)
    context = np.repeat(context_of_row, lengths)
    top = np.arange(one.size) - np.repeat(row_begins, lengths)
    table = context & (number - 1)[one]
    # Top t of context c lies at t - c + contexts - 1.
    at = np.repeat((contexts[of_row] - 1 - context_of_row), lengths) + top
    width = int((tops + contexts).max()) - 1
    moved = _sums((one * TABLES + table) * width + at, seen, len(candidates) * TABLES * width)
    moved = moved.reshape(-1, TABLES, width)
    low, high = _windows(moved.sum(axis=1), ESCAPE - contexts + 1, tops + contexts - 1)
    count = high - low + 1
    levels = _levels(moved, low, count, number)
    has_table = np.arange(TABLES) < number[:, None]
    frequencies = np.zeros_like(levels)
    frequencies[has_table] = tables.frequencies_of(levels[has_table])
    first = low_top + low - contexts + 1
    base = np.maximum(0, first - BELOW)
    # What every top costs in every context.
    place = at - low[one]
    escaped = (place < 0) | (place >= count[one])
    place[escaped] = count[one[escaped]]
    cost = tables.costs(frequencies[one, table, place])
    missed = one[escaped]
    told = top[escaped] + low_top[missed]
    short = (told == 0) | (told > base[missed]) & (told < base[missed] + IN_FULL)
    cost[escaped] += np.where(short, 8, 24) << tables.COST_BITS
    # The sample says how tops and contexts go together; where it has more or less of a top than the
    # tensor, the difference counts with the top's mean cost over the contexts.
    most = int(tops.max())
    sampled = np.add.reduceat(seen, begins)
    average = np.add.reduceat(seen * cost, begins)
    share = (np.add.reduceat(seen, row_begins) << 10) // sampled[of_row]
    cell, cells = one * most + top, len(candidates) * most
    mean = _sums(cell, np.repeat(share, lengths) * cost, cells) >> 10
    exact = np.zeros((len(candidates), most), np.int64)
    for row, candidate in zip(exact, candidates, strict=True):
        row[: candidate.exact.size] = candidate.exact
    excess = (exact << SHARE_BITS) // size[:, None]
    excess -= (_sums(cell, seen, cells).reshape(exact.shape) << SHARE_BITS) // sampled[:, None]
    more = (excess * mean.reshape(exact.shape)).sum(axis=1)
    head_bits = _levels_bits(levels, number, count + 1)
    fitted = []
    for n, candidate in enumerate(candidates):
        head = Head(
            element=candidate.element,
            first=int(first[n]) % (1 << 16),
            count=int(count[n]),
            levels=levels[n, : number[n], : count[n] + 1],
            classes=candidate.classes,
            base=int(base[n]),
        )
        whole = int(size[n])  # Python's: products go beyond 64 bits
        coded = int(average[n]) * whole // int(sampled[n]) + (int(more[n]) * whole >> SHARE_BITS)
        bits = (max(0, coded) >> tables.COST_BITS) + raw_bits_of(candidate.element) * whole
        bits += int(head_bits[n]) + candidate.classes.bits() + 24 * calls.lane_count(whole)
        fitted.append((head, bits))
    return fitted


def _sums(places: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sums of the values at each place, int64; exact below 2^53."""
    return np.bincount(places, values, minlength=count).astype(np.int64)


def _windows(
    histograms: np.ndarray, most: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and last top worth a symbol of their own: at least a quarter of a slot.

    Where they lie further apart than `most`, as zeros and weights do, those around most codes.
    """
    seen = histograms * (4 * SLOTS) >= histograms.sum(axis=1, keepdims=True)
    low, high = seen.argmax(axis=1), seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
    for n in np.flatnonzero(high - low >= most):
        below = np.concatenate([[0], np.cumsum(histograms[n, : widths[n]])])
        begin = int(np.argmax(below[most[n] :] - below[: -most[n]]))
        inside = np.flatnonzero(seen[n, : begin + most[n]])
        inside = inside[inside >= begin]
        low[n], high[n] = inside[0], inside[-1]
    return low, high


def _levels(
    moved: np.ndarray, low: np.ndarray, count: np.ndarray, number: np.ndarray
) -> np.ndarray:
    """Levels of every table, `count` symbols and one for escapes; 0 where there is none.

    Args:
      moved: int64[candidates, TABLES, tops].

    Returns:
      int64[candidates, TABLES, symbols].
    """
    symbol = np.arange(int(count.max()) + 1)
    places = np.minimum(low[:, None] + symbol, moved.shape[2] - 1)
    counts = np.take_along_axis(moved, places[:, None], axis=2)
    counts *= (symbol < count[:, None])[:, None]
    counts[np.arange(len(counts)), :, count] = moved.sum(axis=2) - counts.sum(axis=2)
    # What was not seen with a table may come: eight symbols, spread as over all of them.
    pooled = counts.sum(axis=1)
    spread = 64 * 8 * pooled // np.maximum(1, pooled.sum(axis=1, keepdims=True))
    there = (np.arange(TABLES) < number[:, None])[:, :, None]
    there = there & (symbol <= count[:, None])[:, None]
    weights = np.where(there, counts * 64 + np.maximum(1, spread)[:, None], 0)
    levels = tables.levels_of(weights.reshape(-1, symbol.size)).reshape(weights.shape)
    return np.where(there, levels, 0)


def _levels_bits(levels: np.ndarray, number: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Bits that `tables.write_levels` takes of each candidate's, about."""
    delta = levels.copy()
    delta[:, 1:] -= levels[:, :-1]
    delta[:, 0, 1:] -= levels[:, 0, :-1]
    delta[:, 0, 0] -= tables.FIRST_LEVEL
    folded = np.where(delta < 0, -2 * delta - 1, 2 * delta)
    inside = (np.arange(TABLES) < number[:, None])[:, :, None]
    inside = inside & (np.arange(levels.shape[2]) < symbols[:, None])[:, None]
    folded = np.where(inside, folded, 0).reshape(len(levels), -1)
    size = number * symbols
    return size + np.min([(folded >> k).sum(axis=1) + k * size for k in range(1, 4)], axis=0)
