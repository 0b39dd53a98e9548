"""How an encoder fits codec `planes` to tensors: tables, and a constant where there is one.

Nothing here is needed to decode. Integers throughout, so that every machine decides alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jentropy.entropy import Many, shannon_bits
from jentropy.formats import ElementFormat, code_dtype
from jentropy.formats.packing import NIBBLE

from . import tables
from .byte_planes import are_bytes, runs_of, split
from .coding import Coding, Way
from .planes import (
    NAME,
    NIBBLES,
    OF_BYTES,
    OF_OTHERS,
    OF_PAIRS,
    SIGN,
    STORED,
    WITH_ESCAPES,
    WITH_SIGNS,
    pair_tables,
)
from .rans import LANE, SLOTS
from .tables import BYTE

NARROW = 32  # bytes from the first to the last of a table; those of exponents are no more
RARE = 4  # a byte that fills less than one part in this of a slot escapes
MIN_GAIN = 200  # a plane that does not shrink by one part in this is stored
COMMON = 32  # a number that is more than one part in this of a tensor may be its constant
SLICE_BITS = 16  # of a number, that tell a constant from most others
AT_ONCE = 1 << 20  # numbers that are looked at together


@dataclass(frozen=True, slots=True)
class Constant:
    """A number that is common in a tensor, and that the first plane tells from all others.

    Attributes:
      bytes: its bytes in all planes, of the positive one; the sign is in the second.
      negatives: how often it is negative.
    """

    bytes: tuple[int, ...]
    negatives: int


def may_have_constants(many: Many) -> np.ndarray:
    """Whether each of many tensors may have a constant, bool[tensors].

    Most others have none.
    """
    element, tensors = many.element, many.sizes.size
    if are_bytes(element):
        return np.zeros(tensors, bool)
    tensor, value, counts = many.used(element.code_bits - SLICE_BITS, SLICE_BITS)
    most = np.zeros(tensors, np.int64)
    np.maximum.at(most, tensor, counts)
    is_most = np.flatnonzero(counts == most[tensor])
    common = np.zeros(tensors, np.int64)
    common[tensor[is_most[::-1]]] = value[is_most[::-1]]  # of equally common ones the least
    ((shift, _),) = runs_of(element)[0]
    byte, positive = shift % SLICE_BITS, (1 << SLICE_BITS - 1) - 1
    same = (value ^ common[tensor]) >> byte & BYTE - 1 == 0
    other = (value ^ common[tensor]) & positive != 0
    shared = np.bincount(tensor[same & other], minlength=tensors) > 0
    return (COMMON * most >= many.sizes) & (most < many.sizes) & ~shared


def constant_of(
    numbers: np.ndarray, slices: Sequence[np.ndarray], element: ElementFormat
) -> Constant | None:
    """The common number whose byte in the first plane no other has, but for its negative.

    Args:
      numbers, slices: as `codecs.choose` takes them, of a code each.
    """
    counts = slices[-1]
    most = int(counts.max())
    if are_bytes(element) or COMMON * most < numbers.size or most == numbers.size:
        return None
    ((low, _),) = runs_of(element)[0]
    first = np.arange(counts.size) >> low % 16 & BYTE - 1
    highs = np.flatnonzero((counts > 0) & (first == first[counts.argmax()]))
    positive = counts.size // 2 - 1
    if len(set((highs & positive).tolist())) > 1:
        return None
    number, rest = int(highs[0]) & positive, 16 * (len(slices) - 1)
    if rest:
        flat, rests = numbers.reshape(-1), set()
        for start in range(0, flat.size, AT_ONCE):
            part = np.asarray(flat[start : start + AT_ONCE])
            same = part[part >> rest & positive == number]
            rests |= set(np.unique(same & (1 << rest) - 1).tolist())
            if len(rests) > 1:
                return None
        number = number << rest | rests.pop()
    planes = split(np.array([number], code_dtype(element.dtype)), element)
    negatives = int(counts[highs[highs > positive]].sum())
    return Constant(tuple(int(plane[0]) for plane in planes), negatives)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planes:
    """What is counted of a tensor to fit its planes.

    Attributes:
      histograms: int64[256] of every plane's bytes.
      element: format of the codes.
      constant: of `constant_of`.
    """

    histograms: Sequence[np.ndarray]
    element: ElementFormat
    constant: Constant | None = None


class _Fit(NamedTuple):
    """A plane's coding: bytes that it takes, those of its part of the head, and what is in it.

    A tuple, which is made in a quarter of a dataclass' time.
    """

    coded: int
    kind: int = STORED
    window: bytes = b""
    levels: np.ndarray | None = None
    levels_bytes: int = 0

    @property
    def whole(self) -> int:
        """All that it takes."""
        return self.coded + 1 + len(self.window) + self.levels_bytes

    def head(self) -> bytes:
        start = bytes([self.kind]) + self.window
        return start if self.levels is None else start + tables.write_levels(self.levels)


def saves(coded: int, size: int) -> bool:
    """Whether `coded` bytes are worth it in the stead of `size`."""
    return MIN_GAIN * coded < (MIN_GAIN - 1) * size


def choose(counted: Sequence[Planes]) -> list[Way]:
    """The smallest coding of each tensor by planes, and about how many bytes it takes."""
    # Of each tensor its planes, then those without the constant; all are fitted together.
    counts = [(h, one.element) for one in counted for h in one.histograms]
    counts += [(h, one.element) for one in counted for h, _ in _left(one)]
    fitted = _fitted(counts)
    whole = iter(fitted[: sum(len(one.histograms) for one in counted)])
    others = iter(fitted[sum(len(one.histograms) for one in counted) :])
    return [
        _joined(one, list(itertools.islice(whole, len(one.histograms))), others) for one in counted
    ]


def _left(one: Planes) -> list[tuple[np.ndarray, int]]:
    """Counts of all planes but the first, without the constant; bytes that its signs take."""
    if one.constant is None:
        return []
    omitted, rest = int(one.histograms[0][one.constant.bytes[0]]), []
    for i, counts in enumerate(one.histograms[1:], 1):
        byte, negatives = one.constant.bytes[i], one.constant.negatives if i == 1 else 0
        left = counts.copy()
        left[byte] -= omitted - negatives
        left[byte | SIGN] -= negatives
        rest.append((left, omitted // 8 if negatives else 0))
    return rest


def _joined(one: Planes, whole: list[_Fit], others: Iterator[_Fit]) -> Way:
    """The coding of a tensor whose planes are fitted."""
    fits = [(b"", whole[0])]
    left: Sequence[Any] = _left(one) or len(whole[1:]) * [None]
    signs = 0
    for i, (fit, counts, without) in enumerate(
        zip(whole[1:], one.histograms[1:], left, strict=True), 1
    ):
        start = b""
        if without is not None and one.constant is not None:
            rest = next(others)
            if MIN_GAIN * (fit.coded - rest.coded - without[1]) > int(counts.sum()):
                kind = WITH_SIGNS if i == 1 and one.constant.negatives else OF_OTHERS
                start = bytes([kind, one.constant.bytes[0], one.constant.bytes[i]])
                fit, signs = rest, signs + without[1]
        fits.append((start, fit))
    total = signs
    for start, fit in fits:
        total += len(start) + fit.whole

    def coding() -> Coding:
        return Coding(codec=NAME, head=b"".join(start + fit.head() for start, fit in fits))

    return total, coding


def _fitted(counts: Sequence[tuple[np.ndarray, ElementFormat]]) -> list[_Fit]:
    """The coding of every plane, of how often each byte occurs and the format of the codes."""
    if not counts:
        return []
    histograms = np.stack([histogram for histogram, _ in counts])
    sizes = histograms.sum(axis=1)
    fits: dict[int, _Fit] = {}
    of_bytes: list[int] = []
    for n, (size, (histogram, element)) in enumerate(zip(sizes.tolist(), counts, strict=True)):
        if not size:
            fits[n] = _Fit(coded=0)
        elif element.code_bits == NIBBLE:  # two codes to a byte
            fits[n] = _worth(_with_pairs(histogram, size), size)
        else:
            of_bytes.append(n)
    if of_bytes:
        found = _with_bytes(histograms[of_bytes], sizes[of_bytes])
        fits.update(zip(of_bytes, found, strict=True))
    return [fits[n] for n in range(len(counts))]


def _worth(fit: _Fit, size: int) -> _Fit:
    """The same, or stored if that saves too little."""
    return fit if saves(fit.whole, size + 1) else _Fit(coded=size)


def least_bytes(histograms: Sequence[np.ndarray]) -> float:
    """What the planes of such counts take at the least: their entropies."""
    return sum(int(counts.sum()) * shannon_bits(counts) for counts in histograms) / 8


def _with_bytes(counts: np.ndarray, sizes: np.ndarray) -> list[_Fit]:
    """Planes of such counts with tables of their own.

    Args:
      counts: int64[planes, 256].
      sizes: int64[planes], of all bytes.
    """
    common = counts * SLOTS * RARE >= sizes[:, None]
    first, last = common.argmax(axis=1), BYTE - 1 - common[:, ::-1].argmax(axis=1)
    counts, width = np.where(common, counts, 0), last - first + 1
    fits: dict[int, _Fit] = {}
    for alike in (width <= NARROW, width > NARROW):  # of exponents; of mantissas
        places = np.flatnonzero(alike)
        if places.size:
            some = (column[places] for column in (counts, sizes, first, width))
            fits.update(zip(places.tolist(), _in_windows(*some), strict=True))
    return [fits[n] for n in range(len(fits))]


def _in_windows(
    counts: np.ndarray, sizes: np.ndarray, first: np.ndarray, width: np.ndarray
) -> Iterator[_Fit]:
    """Planes in windows of bytes: the first one, and how many.

    Args:
      counts: int64[planes, 256], 0 of bytes that escape.
      sizes: int64[planes], of all bytes.
    """
    symbol = np.arange(int(width.max()) + 1)
    places = np.minimum(first[:, None] + symbol, BYTE - 1)
    inside = np.take_along_axis(counts, places, axis=1)
    inside *= symbol < width[:, None]
    rare = sizes - inside.sum(axis=1)
    inside[np.arange(len(counts)), width] = rare  # nothing, where there are no escapes
    levels, bits = _levels_and_bits(inside)
    coded = _bytes(bits, sizes) + rare
    symbols = width + (rare > 0)
    levels_bytes = tables.written_bytes(levels, symbols)
    found = (sizes, coded, rare, first, width - 1, symbols, levels_bytes)
    for n, (size, taken, escaped, begin, more, count, head) in enumerate(
        zip(*(column.tolist() for column in found), strict=True)
    ):
        fit = _Fit(
            coded=taken,
            kind=WITH_ESCAPES if escaped else OF_BYTES,
            window=bytes([begin, more]),
            levels=levels[n : n + 1, :count],
            levels_bytes=head,
        )
        yield _worth(fit, size)


def _levels_and_bits(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels of counts, and what their symbols take in 2^-COST_BITS bit. int64[planes, symbols]

    Symbols that occur are moved together: in a small tensor most do not.
    """
    row, column = np.nonzero(counts)
    begins = np.searchsorted(row, np.arange(len(counts)))
    place = np.arange(row.size) - begins[row]
    used = np.zeros((len(counts), int(place.max()) + 1), np.int64)
    used[row, place] = counts[row, column]
    found = tables.levels_of_used(used)
    levels = np.zeros_like(counts)
    levels[row, column] = found[row, place]
    return levels, (used * tables.costs(tables.frequencies_of(found))).sum(axis=1)


def _with_pairs(counts: np.ndarray, size: int) -> _Fit:
    """A plane with one table for both halves of a byte."""
    square = counts.reshape(NIBBLES, NIBBLES)
    levels = tables.levels_of_used((square.sum(axis=0) + square.sum(axis=1))[None])
    bits = (counts * tables.costs(pair_tables(levels).frequencies)).sum()
    return _Fit(
        coded=int(_bytes(bits, np.int64(size))),
        kind=OF_PAIRS,
        levels=levels,
        levels_bytes=int(tables.written_bytes(levels, np.array([NIBBLES]))[0]),
    )


def _bytes(bits: Any, size: Any) -> Any:
    """Bytes of so many bits in 2^-COST_BITS, and of the lanes of so many symbols."""
    whole = -(-bits >> tables.COST_BITS)
    return -(-whole // 8) + 5 * -(-size // LANE)
