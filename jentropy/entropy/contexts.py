"""Are weights i.i.d.? What their neighbours, rows, columns and siblings tell of them.

A weight's symbol is its exponent, in a window of 16, or its whole code of four bits. Of each
context the mutual information with the symbol is what an ideal coder would save by it:

    left, upper   the symbol beside it in its row, in its column
    row, column   the scale of its row or column, in 8 classes: the mean level of the half of it
                  where the weight is not
    sibling       the symbol at its place in the weight before it of the same role and shape: of
                  the expert or layer before

Estimates are Miller and Madow's: the plug-in's bias, (cells in use) / (2 n ln 2) bits, is taken
off. Intervals are those of a mean of n pointwise informations, as if the weights were independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jentropy import modes
from jentropy.formats import RAW

from . import histogram
from .statistics import Counts

SAMPLE = 1 << 22  # weights of a tensor that are looked at; all, if it has fewer
BANDS = 8  # runs of rows that a sample is of
SEED = 0
LEAST = 1 << 12  # weights that a tensor has at least
CONTEXTS = ("left", "upper", "row", "column", "sibling")

_SYMBOL = 4  # bits
_CLASSES = 3  # bits of a class
_SYMBOLS = 1 << _SYMBOL
_SIXTEEN = np.uint8(_SYMBOLS)  # NumPy multiplies bytes ten times as fast as it shifts them
_NORMAL = 1.96  # standard errors that hold 95%
_BLOCK = 1 << 18  # symbols that are joined at a time, so that they stay in a core's cache


@dataclass(frozen=True, slots=True)
class Gain:
    """Bits that a context saves.

    Attributes:
      bits: per weight, of the weights that were looked at.
      error: standard error.
      weights: that were looked at.

    Example:
      >>> Gain(0.004, 0.0001, 1000).interval
      (0.003804, 0.004196)
    """

    bits: float
    error: float
    weights: int

    @property
    def interval(self) -> tuple[float, float]:
        """That of 95% confidence."""
        reach = _NORMAL * self.error
        return round(self.bits - reach, 12), round(self.bits + reach, 12)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"bits": self.bits, "interval": list(self.interval), "weights": self.weights}


def pooled(gains: list[tuple[int, Gain]]) -> Gain:
    """The mean over tensors of so many weights, which are independent of one another.

    Example:
      >>> pooled([(3, Gain(0.1, 0.0, 4)), (1, Gain(0.5, 0.0, 4))]).bits
      0.2
    """
    total = sum(weights for weights, _ in gains)
    return Gain(
        bits=sum(weights * gain.bits for weights, gain in gains) / total,
        error=sum((weights * gain.error / total) ** 2 for weights, gain in gains) ** 0.5,
        weights=sum(gain.weights for _, gain in gains),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which rows of a matrix are looked at.

    Attributes:
      columns: of the matrix; leading axes are rows.
      starts: first rows of the bands.
      rows: of each.

    Example:
      >>> Sampling.of((4096, 14336))
      Sampling(columns=14336, starts=(271, 783, 1295, 1807, 2319, 2831, 3343, 3855), rows=37)
    """

    columns: int
    starts: tuple[int, ...]
    rows: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Sampling | None:
        """Those of a weight; None of one with no neighbours to speak of."""
        size = int(np.prod(shape, dtype=np.int64))
        if len(shape) < 2 or size < LEAST or min(shape[-1], size // shape[-1]) < 2:
            return None
        columns, rows = shape[-1], size // shape[-1]
        if size <= SAMPLE:
            return cls(columns=columns, starts=(0,), rows=rows)
        band = min(max(2, -(-SAMPLE // (BANDS * columns))), rows // BANDS)
        if band < 2:
            return cls(columns=columns, starts=(0,), rows=2)
        free = rows // BANDS - band
        offset = int(np.random.default_rng((SEED, rows, columns)).integers(free + 1))
        starts = tuple(i * (rows // BANDS) + offset for i in range(BANDS))
        return cls(columns=columns, starts=starts, rows=band)


class Sampler:
    """Picks the sampled rows out of codes that come in runs.

    Args:
      shape: of the weight.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._sampling = Sampling.of(shape)
        self._at = 0
        self._parts: list[np.ndarray] = []

    def add(self, codes: np.ndarray | jax.Array) -> None:
        """Takes the next codes, of any shape; of JAX's, no more is moved than is looked at."""
        if isinstance(codes, jax.Array):
            self._add_rows(codes)
            return
        flat, at = codes.reshape(-1), self._at
        self._at += flat.size
        if self._sampling is None:
            return
        columns = self._sampling.columns
        for start in self._sampling.starts:
            first, last = start * columns, (start + self._sampling.rows) * columns
            part = flat[max(0, first - at) : max(0, last - at)]
            if part.size:
                whole = part.size == self._sampling.rows * columns == flat.size
                self._parts.append(part if whole else part.copy())

    def _add_rows(self, codes: jax.Array) -> None:
        """Takes all codes of a weight that lies on devices."""
        if self._sampling is None or not codes.is_fully_addressable:
            self._sampling = None
            return
        matrix = codes.reshape(-1, codes.shape[-1])
        for start in self._sampling.starts:
            self._parts.append(np.asarray(matrix[start : start + self._sampling.rows]))

    @property
    def size(self) -> int:
        """Codes that are looked at."""
        return 0 if self._sampling is None else sum(part.size for part in self._parts)

    def rows(self) -> np.ndarray | None:
        """Codes [bands, rows, columns]; None of a weight that is not looked at."""
        if self._sampling is None:
            return None
        parts = self._parts
        codes = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return codes.reshape(len(self._sampling.starts), self._sampling.rows, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """What is predicted, and how large a weight of it is.

    Attributes:
      what: "exponent" or "code".
      symbols: uint8[bands, rows, columns], below 16.
      levels: the same, growing with |w|.
    """

    what: str
    symbols: np.ndarray
    levels: np.ndarray


def symbols_of(codes: np.ndarray, counts: Counts) -> Symbols | None:
    """Symbols of codes.

    Args:
      codes: [bands, rows, columns].
      counts: of all codes of the tensor.

    Returns:
      None of a format that has neither exponents nor codes of four bits.
    """
    element = counts.element
    if element.name == RAW:
        return None
    if element.code_bits == _SYMBOL:
        size = np.abs(element.decode(np.arange(_SYMBOLS, dtype=np.uint8)))
        levels = np.unique(size, return_inverse=True)[1].astype(np.uint8)
        symbols = codes.astype(np.uint8, copy=False)
        return Symbols(what="code", symbols=symbols, levels=levels[symbols])
    bits = element.field_bits("exponent")
    if not bits:
        return None
    shift = element.shift("exponent")
    symbols = (codes >> codes.dtype.type(shift)).astype(np.uint8) & np.uint8((1 << bits) - 1)
    if bits > _SYMBOL:
        sums = np.cumsum(np.pad(counts.bit_range(shift, bits), (1, 0)))
        first = int((sums[_SYMBOLS:] - sums[:-_SYMBOLS]).argmax())
        np.clip(symbols, first, first + _SYMBOLS - 1, out=symbols)
        symbols -= np.uint8(first)
    return Symbols(what="exponent", symbols=symbols, levels=symbols)


def measure_contexts(of: Symbols, sibling: Symbols | None) -> dict[str, Gain]:
    """What every context saves.

    Args:
      of: the symbols.
      sibling: those of the weight before it, of the same shape.

    Returns:
      By context, in the order of `CONTEXTS`; without `sibling` where there is none.
    """
    with modes.detached_modes():
        return begin_contexts(of, sibling)()


def begin_contexts(of: Symbols, sibling: Symbols | None) -> Callable[[], dict[str, Gain]]:
    """What `measure_contexts` does, with what XLA does still to be awaited: in `detached_modes`."""
    begun = _beside(of, sibling), _scaled(of)
    return lambda: _measured(*(one() for one in begun), sibling is not None)


def _measured(beside: np.ndarray, scaled: np.ndarray, with_sibling: bool) -> dict[str, Gain]:
    near = beside.sum(0)
    joint = {
        "left": near.sum(0),
        "upper": near.sum(1),
        "row": scaled.sum(1),
        "column": scaled.sum(0),
    }
    if with_sibling:
        joint["sibling"] = beside.sum(1).sum(1)  # as fast as it gets: inner axes are whole
    counts = np.zeros((len(joint), _SYMBOLS, _SYMBOLS), np.int64)
    for one, found in zip(counts, joint.values(), strict=True):
        one[: len(found)] = found
    return dict(zip(joint, _gains(counts), strict=True))


def _beside(of: Symbols, sibling: Symbols | None) -> Callable[[], np.ndarray]:
    """Joint histogram [sibling, upper, left, symbol], of all but first rows and columns."""
    bands, rows, columns = of.symbols.shape
    size = bands * (rows - 1) * columns
    room = histogram.room(size)
    keys = room[:size].reshape(bands, rows - 1, columns)
    step = max(1, _BLOCK // columns)
    for band, symbols in enumerate(of.symbols):
        for at in range(0, rows - 1, step):
            part = slice(at, at + step + 1)  # the first is the upper neighbour of the second
            own = symbols[part].reshape(-1)
            # Rows one after another: what is left of a first column is the row above's last.
            low, high = own[columns - 1 : -1] * _SIXTEEN, own[:-columns]
            low |= own[columns:]
            if sibling is not None:
                high = high | sibling.symbols[band][part].reshape(-1)[columns:] * _SIXTEEN
            joint = keys[band, at : at + step].reshape(-1)
            np.left_shift(high, 2 * _SYMBOL, dtype=np.uint16, out=joint)
            joint |= low
    counting = histogram.begin(room, bits=(3 if sibling is None else 4) * _SYMBOL, size=size)

    def result() -> np.ndarray:
        counts = counting.result()
        np.subtract.at(counts, keys[:, :, 0], 1)
        return counts.reshape(-1, _SYMBOLS, _SYMBOLS, _SYMBOLS)

    return result


def _scaled(of: Symbols) -> Callable[[], np.ndarray]:
    """Joint histogram [row's class, column's class, symbol]."""
    columns = of.symbols.shape[-1]
    symbols, levels = of.symbols.reshape(-1, columns), of.levels.reshape(-1, columns)
    above, below = _halves(symbols.shape[0])
    left, right = _halves(columns)
    by_row = _classes([_mean_level(levels[:, half], 1) for half in (right, left)])
    by_column = _classes([_mean_level(levels[half], 0) for half in (below, above)])
    by_row = [one.astype(np.uint16)[:, None] << _SYMBOL + _CLASSES for one in by_row]
    by_column = [one * _SIXTEEN for one in by_column]
    room = histogram.room(symbols.size)
    keys = room[: symbols.size].reshape(symbols.shape)
    step = max(1, _BLOCK // columns)
    for half, column in zip((above, below), by_column, strict=True):
        for first in range(half.start, half.stop, step):
            rows = slice(first, min(first + step, half.stop))
            for part, row in zip((left, right), by_row, strict=True):
                np.bitwise_or(row[rows], symbols[rows, part] | column[part], out=keys[rows, part])
    counting = histogram.begin(room, bits=_SYMBOL + 2 * _CLASSES, size=symbols.size)
    return lambda: counting.result().reshape(1 << _CLASSES, 1 << _CLASSES, _SYMBOLS)


def _halves(size: int) -> tuple[slice, slice]:
    return slice(0, size // 2), slice(size // 2, size)


def _mean_level(levels: np.ndarray, axis: int) -> np.ndarray:
    few = levels.shape[axis] <= np.iinfo(np.uint16).max // _SYMBOLS  # sums take half the time
    return levels.sum(axis, dtype=np.uint16 if few else np.uint32) / np.uint32(levels.shape[axis])


def _classes(scales: list[np.ndarray]) -> list[np.ndarray]:
    """Classes of as many rows or columns each, by their scales. uint8."""
    ordered = np.sort(np.concatenate(scales))
    at = np.arange(1, 1 << _CLASSES) * (ordered.size - 1) / (1 << _CLASSES)
    low = at.astype(np.int64)
    thresholds = ordered[low] + (at - low) * (ordered[low + 1] - ordered[low])
    return [np.searchsorted(thresholds, values).astype(np.uint8) for values in scales]


def _gains(joints: np.ndarray) -> list[Gain]:
    """Mutual information of joint histograms int64[n, contexts, symbols], in bits."""
    total = joints.sum((1, 2))
    contexts, symbols = joints.sum(2), joints.sum(1)
    some = np.maximum(1, total)
    expected = contexts[:, :, None] * (symbols / some[:, None])[:, None]
    used = joints > 0
    pointwise = np.log2(np.divide(joints, expected, out=np.ones(joints.shape), where=used))
    share = joints / some[:, None, None]
    bits = (share * pointwise).sum((1, 2))
    variance = np.maximum(0, (share * pointwise**2).sum((1, 2)) - bits**2)
    cells = used.sum((1, 2)) - (symbols > 0).sum(1) - (contexts > 0).sum(1) + 1
    corrected = np.where(total > 0, bits - cells / (2 * some * math.log(2)), 0)
    errors = np.sqrt(variance / some)
    return [
        Gain(*one) for one in zip(corrected.tolist(), errors.tolist(), total.tolist(), strict=True)
    ]
