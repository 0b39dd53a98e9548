"""Codec `planes`: codes split into bytes, each plane of bytes coded with one table or stored.

How they are split is in `byte_planes`, how an encoder chooses in `fit_planes`. Of two codes of 4
bits, a byte has the product of their frequencies, so that the symbols are the codes, two in a step.

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

    states, counts (`lanes.sections`)
    escapes        of kind 2: u4 number, u1 each
    words          u2, lane after lane

Kinds 4 and 5 are for pruned weights, whose zeros the first plane tells; 5 for those with signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from jentropy.errors import CorruptError

from . import bits, calls, escaping, lanes, tables, threads
from .byte_planes import merge, plane_count, plane_size, split
from .coding import Span
from .tables import BYTE, Tables

NAME = "planes"
STORED, OF_BYTES, WITH_ESCAPES, OF_PAIRS, OF_OTHERS, WITH_SIGNS = range(6)
SIGN = 0x80  # in a byte
NIBBLES = 16
HEAD = f"head of codec {NAME!r}"
OTHERS = "numbers beside the constant"


@dataclass(frozen=True, slots=True)
class Omitted:
    """Bytes of a plane that are not coded: where the first plane has `first`, they are `byte`.

    Attributes:
      signed: whether their highest bits are stored.
    """

    first: int
    byte: int
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


# The head.


def pair_tables(levels: np.ndarray) -> Tables:
    """The table of bytes that hold two codes of these levels. levels: int64[1, 16]"""
    (one,) = tables.frequencies_of(levels)
    frequencies = tables.normalize((one[:, None] * one[None, :]).reshape(-1))
    return Tables(frequencies[None], np.arange(BYTE))


def _byte_plane(first: int, levels: np.ndarray, *, escapes: bool) -> Plane:
    """levels: int64[1, symbols], the last one of the escape if there is one."""
    shown = first + np.arange(levels.shape[1])
    marker = None
    if escapes:
        unused = np.ones(BYTE, bool)
        unused[shown[:-1][levels[0, :-1] > 0]] = False
        marker = int(np.argmax(unused))
        if not unused.any() or levels[0, -1] == 0:
            raise CorruptError(HEAD, expected="bytes to escape", found="none")
        shown[-1] = marker
    return Plane(Tables(tables.frequencies_of(levels), shown), marker)


def planes_of(span: Span) -> tuple[Plane, ...]:
    """The planes of a chunk's tensor.

    Raises:
      CorruptError: no head.
    """
    return read_head(span.coding.head, plane_count(span.element, span.dtype))


@lru_cache(maxsize=256)
def read_head(head: bytes, planes: int) -> tuple[Plane, ...]:
    """The planes of a head.

    Raises:
      CorruptError: no head.
    """
    reader, parsed = bits.Reader(head, HEAD), []
    for i in range(planes):
        kind, omitted = reader.integer("u1"), None
        if kind in (OF_OTHERS, WITH_SIGNS) and i:
            first, byte = reader.integer("u1"), reader.integer("u1")
            omitted = Omitted(first, byte, kind == WITH_SIGNS)
            kind = reader.integer("u1")
        parsed.append(replace(_read_plane(reader, kind), omitted=omitted))
    reader.end()
    return tuple(parsed)


def _read_plane(reader: bits.Reader, kind: int) -> Plane:
    if kind == STORED:
        return Plane(None)
    if kind == OF_PAIRS:
        return Plane(pair_tables(tables.read_levels(reader, 1, NIBBLES)))
    if kind not in (OF_BYTES, WITH_ESCAPES):
        raise CorruptError(HEAD, expected="kinds 0 to 3", found=kind)
    first, count = reader.integer("u1"), reader.integer("u1") + 1
    if first + count > BYTE:
        raise CorruptError(HEAD, expected="symbols below 256", found=first + count - 1)
    escapes = kind == WITH_ESCAPES
    levels = tables.read_levels(reader, 1, count + escapes)
    return _byte_plane(first, levels, escapes=escapes)


# Chunks.


def size_bound(span: Span) -> int:
    """Largest payload of a chunk, bytes: a lane emits at most a word a symbol."""
    size = plane_size(span.size, span.element, span.dtype)
    count = plane_count(span.element, span.dtype)
    return count * (10 + 6 * calls.lane_count(size) + 3 * size)


def encode(chunks: Sequence[np.ndarray], spans: Sequence[Span]) -> list[np.ndarray]:
    """Payloads of chunks of numbers, uint8 each."""
    return threads.each(np.concatenate, _run(threads.each(_sections, chunks, spans), lanes.encode))


def _run(
    sections: Sequence[Sequence[Any]], code: Callable[[Iterator[Any]], list[np.ndarray]]
) -> list[list[np.ndarray]]:
    """Sections, with what `code` gives in the stead of the jobs among them."""
    jobs = (part for parts in sections for part in parts if isinstance(part, calls.Job))
    done = iter(code(jobs))
    return [
        [next(done) if isinstance(part, calls.Job) else part for part in parts]
        for parts in sections
    ]


def _sections(chunk: np.ndarray, span: Span) -> list[np.ndarray | Encoding]:
    """What the payload is made of, in order: bytes, and streams to be coded."""
    sections: list[np.ndarray | Encoding] = []
    planes = split(chunk, span.element)
    for plane, symbols in zip(planes_of(span), planes, strict=True):
        if plane.omitted is not None:
            others = planes[0] != plane.omitted.first
            signs = symbols[~others] if plane.omitted.signed else symbols[:0]
            symbols = symbols[others]
            sections.append(np.array([symbols.size], "<u4").view(np.uint8))
            sections.append(np.packbits(signs & SIGN != 0, bitorder="little"))
        stored = plane.tables is None or symbols.size == 0
        sections.append(symbols if stored else Encoding(symbols, plane))
    return sections


class Encoding(lanes.Encoding):
    """A plane's bytes to be coded."""

    def __init__(self, symbols: np.ndarray, plane: Plane):
        assert plane.tables is not None
        self.symbols, self.plane = symbols, plane
        self.size, self.tables = symbols.size, plane.tables

    def finish(self, states: np.ndarray, counts: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Its section of the payload."""
        escaped = None
        if self.plane.marker is not None:
            is_escape = self.tables.symbols == self.tables.shown.size - 1
            escaped = self.symbols[is_escape[self.symbols]]
        return escaping.written(states, counts, words, escaped)


def decode(
    payloads: Sequence[np.ndarray], spans: Sequence[Span], outs: Sequence[np.ndarray]
) -> None:
    """Writes the numbers of payloads, unsigned integers.

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.
    """
    sections = [_parsed(payload, span) for payload, span in zip(payloads, spans, strict=True)]
    threads.each(_put, _run(sections, lanes.decode), spans, outs)


def _parsed(payload: np.ndarray, span: Span) -> list[np.ndarray | Decoding]:
    """Of each plane its signs, where bytes are omitted, and its bytes or a stream of them."""
    reader, sections = bits.Reader(payload, "coded chunk"), list[np.ndarray | Decoding]()
    full = plane_size(span.size, span.element, span.dtype)
    for plane in planes_of(span):
        count = full
        if plane.omitted is not None:
            count = reader.integer("<u4")
            if count > full:
                raise CorruptError(OTHERS, expected=f"{full} at the most", found=count)
            sections.append(reader.bits(full - count if plane.omitted.signed else 0))
        stored = plane.tables is None or count == 0
        sections.append(reader.array("u1", count) if stored else Decoding(reader, count, plane))
    reader.end()
    return sections


class Decoding(lanes.Decoding):
    """A plane's bytes to be decoded."""

    def __init__(self, reader: bits.Reader, size: int, plane: Plane):
        assert plane.tables is not None
        self.size, self.tables, self.marker = size, plane.tables, plane.marker
        stored = escaping.read(reader, size, escapes=plane.marker is not None)
        self.states, self.counts, self.escaped, self.words = stored

    def finish(self, symbols: np.ndarray, carries: np.ndarray) -> np.ndarray:
        """The bytes."""
        lanes.expect_no_carries(carries)
        if self.marker is None:
            return symbols
        symbols = symbols.copy()
        escaping.put_back(symbols, self.marker, self.escaped)
        return symbols


def _put(sections: list[np.ndarray], span: Span, out: np.ndarray) -> None:
    """Writes the numbers of what `_parsed` gave, the streams decoded."""
    parts, planes = iter(sections), list[np.ndarray]()
    for plane in planes_of(span):
        omitted = plane.omitted
        planes.append(next(parts) if omitted is None else _completed(omitted, planes[0], parts))
    merge(planes, span.element, out)


def _completed(omitted: Omitted, first: np.ndarray, parts: Iterator[np.ndarray]) -> np.ndarray:
    """All bytes of a plane: those that were coded, and the others."""
    signs, symbols = next(parts), next(parts)
    others = first != omitted.first
    if np.count_nonzero(others) != symbols.size:
        raise CorruptError(OTHERS, expected=np.count_nonzero(others), found=symbols.size)
    plane = np.full(first.size, omitted.byte, np.uint8)
    plane[others] = symbols
    if omitted.signed:
        plane[~others] |= signs << 7
    return plane
