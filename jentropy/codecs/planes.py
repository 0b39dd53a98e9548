"""Codec `planes`: codes cut into bytes, each plane of bytes coded with one table or stored.

The first plane of a float of 16 bits or more is its exponent with as many leading mantissa bits as
fit a byte; what is left, sign first, follows in bytes:

    BF16   exponent 8                  | sign 1, mantissa 7
    FP16   exponent 5, mantissa 3      | sign 1, mantissa 7
    FP32   exponent 8                  | sign 1, mantissa 7 | mantissa 8 | mantissa 8

Other numbers are cut into bytes from the most significant down. Packed codes of 4 or 8 bits, and
numbers of a byte, are one plane of all bytes in the order of memory; of two codes of 4 bits, a byte
has the product of their frequencies, so that the symbols are the codes, two in a step.

Head, for each plane in order:

    u1 kind        0: stored; 1: a table of bytes; 2: one with escapes; 3: a table of 4-bit codes;
                   4, 5, not of the first plane: of the numbers that are not the constant
    kinds 1 and 2  u1 first, u1 count - 1, levels of count symbols and, of kind 2, of the escape:
                   bytes that are too rare for a slot of their own have level 0 and escape
    kind 3         levels of 16 symbols; f of a byte = f(low code) * f(high code), normalised
    kinds 4 and 5  u1 byte of the constant in the first plane, which no other number has; u1 its
                   byte in this one, of kind 5 without the highest bit; then kind 0 to 3 of what is
                   left

A chunk of n numbers: of each plane in order, of kinds 4 and 5 u4 how many bytes are left; of kind 5
the highest bit of each constant's byte, lowest bit of a byte first; then either the bytes that are
left, or, if there are any,

    states, counts (`lanes.Stream`)
    escapes        of kind 2: u4 number, u1 each
    words          u2, lane after lane

Kinds 4 and 5 are for pruned weights, whose zeros the first plane tells; 5 for those with signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from jentropy.errors import CorruptError
from jentropy.formats import RAW, ElementFormat, code_dtype

from . import bits, cores, lanes, tables
from .coding import Coding, Layout, Span, Then
from .lanes import Decoding, Encoding, Stream, Symbols
from .rans import SLOTS
from .tables import Tables

NAME = "planes"
STORED, OF_BYTES, WITH_ESCAPES, OF_PAIRS, OF_OTHERS, WITH_SIGNS = range(6)
SIGN = 0x80  # in a byte
BYTE, NIBBLES = 256, 16
RARE = 4  # a byte that fills less than one part in this of a slot escapes
MIN_GAIN = 200  # a plane that does not shrink by one part in this is stored
COMMON = 32  # a number that is more than one part in this of a tensor may be its constant
PIECE = 1 << 20  # numbers that are looked at together
OTHERS = "numbers beside the constant"


@dataclass(frozen=True, slots=True)
class Constant:
    """A number that is common in a tensor, and that the first plane tells from all others.

    Attributes:
      first: its byte in the first plane.
      octets: its bytes in all planes, of the positive one; the sign is in the second.
      negatives: how often it is negative.
    """

    first: int
    octets: tuple[int, ...]
    negatives: int


@dataclass(frozen=True, slots=True)
class Omitted:
    """Bytes of a plane that are not coded: where the first plane has `first`, they are `octet`.

    Attributes:
      signed: whether their highest bits are stored.
    """

    first: int
    octet: int
    signed: bool


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane's coding.

    Attributes:
      tables: None: it is stored.
      marker: the byte, one without a symbol, that a decoder is shown for an escape; None: there are
        no escapes.
      omitted: bytes that are not coded.
    """

    tables: Tables | None
    marker: int | None = None
    omitted: Omitted | None = None

    @cached_property
    def is_escape(self) -> np.ndarray:
        """bool[256], whether a byte has no symbol of its own."""
        assert self.tables is not None
        escapes = np.ones(BYTE, bool)
        shown = self.tables.shown[0][self.tables.frequencies[0] > 0]
        escapes[shown if self.marker is None else shown[:-1]] = False
        return escapes

    @cached_property
    def encode_rows(self) -> np.ndarray:
        """What an encoder looks up for each byte."""
        assert self.tables is not None
        shown = self.tables.shown[0]
        symbols = np.full(BYTE, shown.size - 1)  # the escape, where there is one
        own = np.flatnonzero(self.tables.frequencies[0])
        own = own if self.marker is None else own[:-1]
        symbols[shown[own]] = own
        return self.tables.encode_rows(symbols)


@lru_cache
def runs_of(element: ElementFormat) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Runs of bits (lowest bit, bits), most significant first, of each plane of a code."""
    width = element.code_bits
    exponent = element.field_bits("exponent")
    if element.name == RAW or width <= 8 or not exponent:
        return tuple(((low, 8),) for low in reversed(range(0, 8 * element.dtype.itemsize, 8)))
    leading = 8 - exponent
    rest = element.field_bits("mantissa") - leading  # mantissa bits that follow the sign
    head = ((element.shift("exponent") - leading, 8),)
    tail = (((low, 8),) for low in reversed(range(0, rest - 7, 8)))
    return (head, ((width - 1, 1), (rest - 7, 7)), *tail)


def split(numbers: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """Planes of numbers (unsigned integers, or RAW of any dtype), uint8[n] each."""
    if layout.octets:
        return [numbers.reshape(-1).view(np.uint8)]
    runs = runs_of(layout.element)
    if all(len(plane) == 1 for plane in runs):
        octets = numbers.reshape(-1).view(np.uint8).reshape(numbers.size, -1)
        return list(np.ascontiguousarray(octets[:, ::-1].T))
    flat = numbers.reshape(-1)
    planes = []
    for plane in runs:
        value = np.zeros(flat.size, flat.dtype)
        for low, count in plane:
            mask = flat.dtype.type((1 << count) - 1)
            value = value << flat.dtype.type(count) | (flat >> flat.dtype.type(low)) & mask
        planes.append(value.astype(np.uint8))
    return planes


def merge(planes: Sequence[np.ndarray], layout: Layout) -> np.ndarray:
    """Numbers of planes: the inverse of `split`."""
    dtype = code_dtype(layout.element.dtype)
    if layout.octets:
        return planes[0].view(dtype)
    runs = runs_of(layout.element)
    if all(len(plane) == 1 for plane in runs):
        octets = np.stack(list(reversed(planes)), axis=-1)
        return np.ascontiguousarray(octets).reshape(-1).view(dtype)
    codes = np.zeros(planes[0].size, dtype)
    for plane, row in zip(runs, planes, strict=True):
        wide, below = row.astype(dtype), 8
        for low, count in plane:
            below -= count
            part = wide >> dtype.type(below) & dtype.type((1 << count) - 1)
            codes |= part << dtype.type(low)
    return codes


def plane_count(layout: Layout) -> int:
    """Planes of a layout."""
    return 1 if layout.octets else len(runs_of(layout.element))


def plane_size(size: int, layout: Layout) -> int:
    """Bytes of a plane of `size` numbers."""
    return size * layout.element.dtype.itemsize if layout.octets else size


def histograms(slices: Sequence[np.ndarray], layout: Layout) -> list[np.ndarray]:
    """How often each byte occurs in every plane, int64[256] each.

    Args:
      slices: counts of bits 16 i and up of the numbers, as `entropy.Counts` holds them.
    """
    return [_marginal(slices[plane[0][0] // 16], plane) for plane in runs_of(layout.element)]


def _marginal(counts: np.ndarray, plane: Sequence[tuple[int, int]]) -> np.ndarray:
    """How often each value of a plane occurs, from counts of the 16 bits that it lies in."""
    assert len({low // 16 for low, _ in plane}) == 1, "a plane crosses no slice"
    shape, at = [], counts.size.bit_length() - 1
    for low, bits_ in plane:  # what is above the run, and the run
        shape += [1 << (at - low % 16 - bits_), 1 << bits_]
        at = low % 16
    shape.append(1 << at)
    return counts.reshape(shape).sum(axis=tuple(range(0, len(shape), 2))).reshape(-1)


# The head.


def _pair_tables(levels: np.ndarray) -> Tables:
    """The table of bytes that hold two codes of these levels. levels: int64[1, 16]"""
    (one,) = tables.frequencies_of(levels)
    frequencies = tables.normalize((one[:, None] * one[None, :]).reshape(-1))
    return Tables(frequencies[None], np.arange(BYTE)[None])


def _byte_plane(first: int, levels: np.ndarray, *, escapes: bool) -> Plane:
    """levels: int64[1, symbols], the last one of the escape if there is one."""
    shown = first + np.arange(levels.shape[1])
    marker = None
    if escapes:
        unused = np.ones(BYTE, bool)
        unused[shown[:-1][levels[0, :-1] > 0]] = False
        marker = int(np.argmax(unused))
        if not unused.any() or levels[0, -1] == 0:
            raise CorruptError(f"head of codec {NAME!r}", expected="bytes to escape", found="none")
        shown[-1] = marker
    return Plane(Tables(tables.frequencies_of(levels), shown[None]), marker)


@lru_cache(maxsize=256)
def read_head(head: bytes, planes: int) -> tuple[Plane, ...]:
    """The planes of a head.

    Raises:
      CorruptError: no head.
    """
    reader, found = bits.Reader(head, f"head of codec {NAME!r}"), []
    for i in range(planes):
        kind, omitted = reader.integer("u1"), None
        if kind in (OF_OTHERS, WITH_SIGNS) and i:
            first, octet = reader.integer("u1"), reader.integer("u1")
            omitted = Omitted(first, octet, kind == WITH_SIGNS)
            kind = reader.integer("u1")
        found.append(replace(_read_plane(reader, kind), omitted=omitted))
    reader.end()
    return tuple(found)


def _read_plane(reader: bits.Reader, kind: int) -> Plane:
    if kind == STORED:
        return Plane(None)
    if kind == OF_PAIRS:
        return Plane(_pair_tables(tables.read_levels(reader, 1, NIBBLES)))
    if kind not in (OF_BYTES, WITH_ESCAPES):
        raise CorruptError(f"head of codec {NAME!r}", expected="kinds 0 to 3", found=kind)
    first, count = reader.integer("u1"), reader.integer("u1") + 1
    if first + count > BYTE:
        raise CorruptError(
            f"head of codec {NAME!r}", expected="symbols below 256", found=first + count - 1
        )
    escapes = kind == WITH_ESCAPES
    levels = tables.read_levels(reader, 1, count + escapes)
    return _byte_plane(first, levels, escapes=escapes)


# Chunks.


def encode(
    chunks: Sequence[np.ndarray],
    spans: Sequence[Span],
    then: Then,
) -> list[Any]:
    """What `then` makes of the payloads of chunks of numbers, uint8 each."""
    jobs: list[Encoding] = []
    sections: list[list[np.ndarray | int]] = []  # an integer is the number of a job
    for chunk, span in zip(chunks, spans, strict=True):
        sections.append([])
        parts = split(chunk, span.layout)
        planes = read_head(span.coding.head, len(parts))
        for plane, octets in zip(planes, parts, strict=True):
            if plane.omitted is not None:
                others = parts[0] != plane.omitted.first
                signs = octets[~others] if plane.omitted.signed else octets[:0]
                octets = octets[others]
                sections[-1].append(np.array([octets.size], "<u4").view(np.uint8))
                sections[-1].append(np.packbits(signs & SIGN != 0, bitorder="little"))
            if plane.tables is None or octets.size == 0:
                sections[-1].append(octets)
                continue
            sections[-1].append(len(jobs))
            jobs.append(_encoding(octets, plane))
    coded = lanes.encode(jobs)

    def one(i: int) -> Any:
        parts = [coded[part] if isinstance(part, int) else part for part in sections[i]]
        return then(i, np.concatenate(parts))

    return cores.each(one, range(len(chunks)))


def _encoding(octets: np.ndarray, plane: Plane) -> Encoding:
    def finish(stream: Stream) -> np.ndarray:
        parts = [*stream.sections(), stream.words.astype("<u2", copy=False)]
        if plane.marker is not None:
            escaped = octets[plane.is_escape[octets]]
            parts[-1:-1] = [np.array([escaped.size], "<u4"), escaped]
        return np.concatenate([part.view(np.uint8) for part in parts])

    assert plane.tables is not None
    return Encoding(octets.size, plane.tables, plane.encode_rows, lambda: Symbols(octets), finish)


def decode(
    payloads: Sequence[np.ndarray],
    spans: Sequence[Span],
    outs: Sequence[np.ndarray],
    then: Then,
) -> list[Any]:
    """Writes the numbers of each payload, unsigned integers; what `then` makes of them.

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.
    """
    jobs: list[Decoding] = []
    sections: list[list[np.ndarray | int]] = []
    for payload, span in zip(payloads, spans, strict=True):
        reader = bits.Reader(payload, "coded chunk")
        sections.append([])
        whole = plane_size(span.size, span.layout)
        for plane in read_head(span.coding.head, plane_count(span.layout)):
            count = whole
            if plane.omitted is not None:
                count = reader.integer("<u4")
                if count > whole:
                    raise CorruptError(OTHERS, expected=f"{whole} at the most", found=count)
                signs = whole - count if plane.omitted.signed else 0
                sections[-1].append(reader.bits(signs))
            if plane.tables is None or count == 0:
                sections[-1].append(reader.array("u1", count))
                continue
            sections[-1].append(len(jobs))
            jobs.append(_decoding(reader, count, plane))
        reader.end()
    decoded = lanes.decode(jobs)

    def one(i: int) -> Any:
        layout = spans[i].layout
        parts = iter([decoded[part] if isinstance(part, int) else part for part in sections[i]])
        planes: list[np.ndarray] = []
        for plane in read_head(spans[i].coding.head, plane_count(layout)):
            if plane.omitted is None:
                planes.append(next(parts))
            else:
                planes.append(_completed(plane.omitted, planes[0], next(parts), next(parts)))
        outs[i][:] = merge(planes, layout)
        return then(i, outs[i])

    return cores.each(one, range(len(payloads)))


def _completed(
    omitted: Omitted, first: np.ndarray, signs: np.ndarray, octets: np.ndarray
) -> np.ndarray:
    """All bytes of a plane: those that were coded, and the others."""
    others = first != omitted.first
    if np.count_nonzero(others) != octets.size:
        raise CorruptError(OTHERS, expected=np.count_nonzero(others), found=octets.size)
    whole = np.full(first.size, omitted.octet, np.uint8)
    whole[others] = octets
    if omitted.signed:
        whole[~others] |= signs << 7
    return whole


def _decoding(reader: bits.Reader, size: int, plane: Plane) -> Decoding:
    states, counts = lanes.read_sections(reader, size)
    escaped = np.zeros(0, np.uint8)
    if plane.marker is not None:
        escaped = reader.array("u1", reader.integer("<u4"))
    words = reader.array("<u2", int(counts.sum()))

    def finish(symbols: np.ndarray, low: np.ndarray) -> np.ndarray:
        if low.any():
            raise CorruptError("coded symbols", expected="lanes that begin at 2^16", found="others")
        if plane.marker is None:
            return symbols
        missed = np.flatnonzero(symbols == plane.marker)
        if missed.size != escaped.size:
            raise CorruptError("escapes of a chunk", expected=missed.size, found=escaped.size)
        symbols = symbols.copy()
        symbols[missed] = escaped
        return symbols

    assert plane.tables is not None
    stream = Stream(states, counts, words)
    return Decoding(size, plane.tables, lambda: (stream, None), finish)


def size_bound(size: int, layout: Layout) -> int:
    """Largest payload of a chunk, bytes: a lane emits at most a word a symbol."""
    count = plane_size(size, layout)
    return plane_count(layout) * (10 + 6 * lanes.lane_count(count) + 3 * count)


# The encoder's choice. Integers throughout, so that every machine decides alike.


def constant_of(
    numbers: np.ndarray, slices: Sequence[np.ndarray], layout: Layout
) -> Constant | None:
    """The common number whose byte in the first plane no other has, but for its negative.

    Args:
      numbers, slices: as `codecs.choose` takes them.
    """
    counts = slices[-1]
    most = int(counts.max())
    if layout.octets or COMMON * most < numbers.size or most == numbers.size:
        return None
    runs = runs_of(layout.element)
    if all(len(plane) == 1 for plane in runs):
        return None
    ((low, _),) = runs[0]
    first = np.arange(counts.size) >> low % 16 & BYTE - 1
    highs = np.flatnonzero((counts > 0) & (first == first[counts.argmax()]))
    positive = counts.size // 2 - 1
    if len(set((highs & positive).tolist())) > 1:
        return None
    number, rest = int(highs[0]) & positive, 16 * (len(slices) - 1)
    if rest:
        flat, found = numbers.reshape(-1), set()
        for start in range(0, flat.size, PIECE):
            piece = np.asarray(flat[start : start + PIECE])
            own = piece[piece >> rest & positive == number]
            found |= set(np.unique(own & (1 << rest) - 1).tolist())
            if len(found) > 1:
                return None
        number = number << rest | found.pop()
    one = np.array([number], code_dtype(layout.element.dtype))
    octets = tuple(int(plane[0]) for plane in split(one, layout))
    return Constant(octets[0], octets, int(counts[highs[highs > positive]].sum()))


def choose(
    histograms: Sequence[np.ndarray], layout: Layout, constant: Constant | None = None
) -> tuple[int, Coding]:
    """The smallest coding of a tensor by planes, and about how many bytes it takes.

    Args:
      histograms: int64[256] of every plane's bytes.
      constant: of `constant_of`.
    """
    head, total = b"", 0
    for i, counts in enumerate(histograms):
        coded, part = _plane(counts, layout)
        if constant is not None and i:
            omitted, octet = int(histograms[0][constant.first]), constant.octets[i]
            negatives = constant.negatives if i == 1 else 0
            left = counts.copy()
            left[octet] -= omitted - negatives
            if negatives:
                left[octet | SIGN] -= negatives
            others, own = _plane(left, layout)
            others += omitted // 8 if negatives else 0
            if MIN_GAIN * (coded - others) > int(counts.sum()):
                kind = WITH_SIGNS if negatives else OF_OTHERS
                coded, part = others, bytes([kind, constant.first, octet]) + own
        total += coded
        head += part
    return total + len(head), Coding(codec=NAME, head=head)


def _plane(counts: np.ndarray, layout: Layout) -> tuple[int, bytes]:
    """Bytes that a plane of such counts takes, and its part of the head."""
    count = int(counts.sum())
    coded, head = _with_pairs(counts) if layout.pairs else _with_bytes(counts)
    worth = MIN_GAIN * coded < (MIN_GAIN - 1) * count
    return (coded, head) if worth else (count, bytes([STORED]))


def least_bytes(histograms: Sequence[np.ndarray]) -> float:
    """What the planes of such counts take at the least: their entropies."""
    total = 0.0
    for counts in histograms:
        used = counts[counts > 0].astype(np.float64)
        total += float(used @ (np.log2(used.sum()) - np.log2(used)))
    return total / 8


def _with_bytes(counts: np.ndarray) -> tuple[int, bytes]:
    """Bytes that a plane of such counts takes with its own table, and the table."""
    size = int(counts.sum())
    if size == 0:
        return 0, bytes([STORED])
    own = counts * SLOTS * RARE >= size
    used = np.flatnonzero(own)
    first, last = int(used[0]), int(used[-1])
    inside = np.where(own, counts, 0)[None, first : last + 1]
    rare = size - int(inside.sum())
    kind = WITH_ESCAPES if rare else OF_BYTES
    if rare:
        inside = np.append(inside, rare)[None]
    levels = np.where(inside > 0, tables.levels_of(_below(inside, 31)), 0)
    head = bytes([kind, first, last - first]) + tables.write_levels(levels)
    return _bytes(inside, tables.frequencies_of(levels), size) + rare, head


def _with_pairs(counts: np.ndarray) -> tuple[int, bytes]:
    """The same with one table for both halves of a byte."""
    square = counts.reshape(NIBBLES, NIBBLES)
    one = (square.sum(axis=0) + square.sum(axis=1))[None]
    if not one.any():
        return 0, bytes([STORED])
    levels = np.where(one > 0, tables.levels_of(_below(one, 31)), 0)
    frequencies = _pair_tables(levels).frequencies
    head = bytes([OF_PAIRS]) + tables.write_levels(levels)
    return _bytes(counts[None], frequencies, int(counts.sum())), head


def _bytes(counts: np.ndarray, frequencies: np.ndarray, size: int) -> int:
    return -(-tables.cost_bits(counts, frequencies) // 8) + 5 * lanes.lane_count(size)


def _below(counts: np.ndarray, width: int) -> np.ndarray:
    """Counts scaled down until they fit a width; none becomes 0."""
    shift = max(0, int(counts.max()).bit_length() - width)
    return np.where(counts > 0, np.maximum(1, counts >> shift), 0)
