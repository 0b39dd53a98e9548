"""Codec `planes`: codes cut into bytes, each plane of bytes coded with one table or stored.

How they are cut is in `cutting`, how an encoder chooses in `fit_planes`. Of two codes of 4 bits, a
byte has the product of their frequencies, so that the symbols are the codes, two in a step.

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

from . import bits, cores, lanes, tables
from .coding import Layout, Span, Then
from .cutting import BYTE, merge, plane_count, plane_size, split
from .lanes import Decoding, Encoding, Stream, Symbols
from .tables import Tables

NAME = "planes"
STORED, OF_BYTES, WITH_ESCAPES, OF_PAIRS, OF_OTHERS, WITH_SIGNS = range(6)
SIGN = 0x80  # in a byte
NIBBLES = 16
OTHERS = "numbers beside the constant"


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


# The head.


def pair_tables(levels: np.ndarray) -> Tables:
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
        return Plane(pair_tables(tables.read_levels(reader, 1, NIBBLES)))
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
