"""Codec `context`: exponent and two mantissa bits of BF16 and FP16, by scale of row and column.

A code's top is its exponent and two leading mantissa bits; what is left, r raw bits (of BF16 sign
and five mantissa bits, r = 6; of FP16 r = 9), is stored (`rawbits`). A top is coded as symbol
top - first - context, or as an escape. Context = class of the row + class of the column, a class
being a step of a quarter octave of mean magnitude. Two mantissa bits make four tops an octave, of
different widths, so that contexts a whole octave apart have nearly the same table and share it:
the table of a context is context mod T.

Head, little-endian:

    u1 flags       1: there are escapes
    u1 T (1, 2 or 4), u1 count - 1, u2 first, u2 base of escapes
    levels         of T tables of count symbols, and one for escapes (`tables`)
    classes        of rows, then of columns: u1 number of kinds, u1 each kind, the commonest first;
                   if there are several, each row's (column's) place among them in unary

A chunk of n codes in L = ceil(n / 8192) lanes:

    states, counts (`lanes.Stream`)
    escapes        with flag 1: u4 number; u1 each: 0 is top 0, 1 to 254 top base + that, 255 a top
                   given in full, u2 each, after them
    words          u2, lane after lane
    raw planes     lowest bits first; the first 2 L bytes of the first plane are not there: bytes
                   2 l and 2 l + 1 are the low 16 bits of lane l's initial state
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from jentropy.entropy.sizes import pieces
from jentropy.errors import CorruptError
from jentropy.formats import BF16, FP16, ElementFormat

from . import bits, buffers, lanes, rawbits, tables, whole
from .coding import Layout, Span, Then
from .lanes import Decoding, Encoding, Gathered, Grid, Stream, Symbols
from .tables import Tables

NAME = "context"
MANTISSA = 2  # leading mantissa bits of a top; a third costs more in tables than it saves
ELEMENTS = (BF16, FP16)
TABLES = 4  # of a tensor at the most: tops of an octave
ESCAPE = 255  # what a decoder's table shows for an escape
IN_FULL = 255  # an escape's byte


def raw_bits_of(element: ElementFormat) -> int:
    """Raw bits of a code: sign and the mantissa bits that are not in the top."""
    return 1 + element.field_bits("mantissa") - MANTISSA


@dataclass(frozen=True, eq=False)
class Plan:
    """A tensor's coding.

    Attributes:
      first, count: the window of tops that have symbols, in context 0; it moves by one from a
        context to the next.
      levels: int64[T, count or count + 1], the last for escapes.
      rows, columns: uint8 class of each; None: all are 0.
      base: of escapes.
    """

    element: ElementFormat
    first: int
    count: int
    levels: np.ndarray
    rows: np.ndarray | None
    columns: np.ndarray | None
    base: int

    @property
    def raw_bits(self) -> int:
        """Raw bits of a code."""
        return raw_bits_of(self.element)

    @property
    def escapes(self) -> bool:
        """Whether there are escapes."""
        return self.levels.shape[1] > self.count

    @property
    def contexts(self) -> int:
        """Number of contexts."""
        parts = (self.rows, self.columns)
        return 1 + sum(int(part.max(initial=0)) for part in parts if part is not None)

    @cached_property
    def tables(self) -> Tables:
        """The tables; a decoder is shown symbols and ESCAPE."""
        frequencies = tables.frequencies_of(self.levels)
        shown = np.tile(np.arange(frequencies.shape[1]), (len(frequencies), 1))
        if self.escapes:
            shown[:, self.count] = ESCAPE
        return Tables(frequencies, shown)

    @cached_property
    def encode_rows(self) -> np.ndarray:
        """What an encoder looks up."""
        return self.tables.encode_rows()

    def contexts_of(self, span: Span) -> np.ndarray | None:
        """Contexts of a chunk's codes, uint8[size]; None: all are 0."""
        if self.rows is None and self.columns is None:
            return None
        start, size, columns = span.start, span.size, span.layout.columns
        low, high = start // columns, -(-(start + size) // columns)
        both = buffers.empty((high - low, columns), np.uint8)
        if self.rows is not None and self.columns is not None:
            np.add(self.rows[low:high, None], self.columns, out=both)
        elif self.rows is not None:
            both[:] = self.rows[low:high, None]
        elif self.columns is not None:
            both[:] = self.columns
        return both.reshape(-1)[start - low * columns :][:size]

    def numbers_of(self, contexts: np.ndarray | None) -> np.ndarray | None:
        """The table of each context; None: the first."""
        if contexts is None or self.tables.count == 1:
            return None
        mask = np.uint8(self.tables.count - 1)
        return np.bitwise_and(contexts, mask, out=buffers.empty(contexts.shape, np.uint8))


# The head.


def write_head(plan: Plan) -> bytes:
    """The head of a plan."""
    numbers = bytes([plan.escapes, len(plan.levels), plan.count - 1])
    numbers += plan.first.to_bytes(2, "little") + plan.base.to_bytes(2, "little")
    classes = b"".join(_write_classes(part) for part in (plan.rows, plan.columns))
    return numbers + tables.write_levels(plan.levels) + classes


def _write_classes(classes: np.ndarray | None) -> bytes:
    if classes is None:
        return bytes([1, 0])
    counts = np.bincount(classes)
    kinds = np.argsort(-counts, kind="stable")
    kinds = kinds[counts[kinds] > 0]
    place = np.zeros(counts.size, np.int64)
    place[kinds] = np.arange(kinds.size)
    head = bytes([kinds.size, *kinds.tolist()])
    return head if kinds.size == 1 else head + bits.unary(place[classes])


def classes_bits(classes: np.ndarray | None) -> int:
    """Bits that classes take in a head, about."""
    if classes is None:
        return 16
    counts = np.sort(np.bincount(classes))[::-1]
    return 8 + 8 * int(np.count_nonzero(counts)) + int(counts @ np.arange(1, counts.size + 1))


@lru_cache(maxsize=256)  # with its tables a plan is some 70 KB
def read_head(head: bytes, element: ElementFormat, rows: int, columns: int) -> Plan:
    """The plan of a head, for a tensor of so many rows and columns.

    Raises:
      CorruptError: no head.
    """
    reader = bits.Reader(head, f"head of codec {NAME!r}")
    flags, number, count = (reader.integer("u1") for _ in range(3))
    first, base = reader.integer("<u2"), reader.integer("<u2")
    count += 1
    if flags > 1 or number not in (1, 2, TABLES):
        raise CorruptError(
            f"head of codec {NAME!r}",
            expected=f"flags 0 or 1, and 1, 2 or {TABLES} tables",
            found=f"{flags}, {number}",
        )
    levels = tables.read_levels(reader, number, count + flags)
    row, column = _read_classes(reader, rows), _read_classes(reader, columns)
    plan = Plan(element, first, count, levels, row, column, base)
    reader.end()
    if count + plan.contexts - 1 > ESCAPE:
        raise CorruptError(
            f"head of codec {NAME!r}",
            expected=f"up to {ESCAPE} tops",
            found=count + plan.contexts - 1,
        )
    return plan


def _read_classes(reader: bits.Reader, count: int) -> np.ndarray | None:
    kinds = reader.array("u1", reader.integer("u1"))
    if kinds.size == 0:
        raise CorruptError(f"classes of codec {NAME!r}", expected="a kind", found="none")
    if kinds.size == 1:
        return np.full(count, kinds[0], np.uint8) if kinds[0] else None
    places = reader.unary(count)
    if places.max(initial=0) >= kinds.size:
        raise CorruptError(
            f"classes of codec {NAME!r}",
            expected=f"places below {kinds.size}",
            found=int(places.max()),
        )
    return kinds[places]


# Chunks.


def encode(
    chunks: Sequence[np.ndarray],
    spans: Sequence[Span],
    then: Then,
) -> list[Any]:
    """What `then` makes of the payloads of chunks of codes, uint8 each."""
    return lanes.encode(
        [
            _encoding(chunk.reshape(-1), span, partial(then, i))
            for i, (chunk, span) in enumerate(zip(chunks, spans, strict=True))
        ]
    )


def plan_of(span: Span) -> Plan:
    """The plan of a chunk's tensor.

    Raises:
      CorruptError: no plan, or one of another format.
    """
    layout = span.layout
    if layout.element not in ELEMENTS:
        names = " or ".join(element.name for element in ELEMENTS)
        raise CorruptError(f"format of codec {NAME!r}", expected=names, found=layout.element.name)
    return read_head(span.coding.head, layout.element, layout.rows, layout.columns)


def _encoding(chunk: np.ndarray, span: Span, then: Callable[[np.ndarray], Any]) -> Encoding:
    plan = plan_of(span)
    carried = 2 * lanes.lane_count(chunk.size)  # bytes of the first plane
    held: list[list[np.ndarray]] = []

    def hold(symbols: np.ndarray, planes: list[np.ndarray]) -> None:
        escaped = chunk[:0]
        if plan.escapes:
            escaped = (chunk[symbols == plan.count] & np.uint16(0x7FFF)) >> np.uint16(
                plan.raw_bits - 1
            )
        held[:] = [_write_escapes(escaped, plan), [planes[0][carried:], *planes[1:]]]

    def prepare() -> Symbols:
        contexts = plan.contexts_of(span)
        symbols, planes = _split(chunk, contexts, plan)
        hold(symbols, planes)
        return Symbols(symbols, plan.numbers_of(contexts), planes[0][:carried].copy().view("<u2"))

    def finish(stream: Stream) -> Any:
        escapes, planes = held
        words = stream.words.astype("<u2", copy=False)
        parts = [*stream.sections(), *escapes, words, *planes]
        return then(np.concatenate([part.view(np.uint8) for part in parts]))

    def alone(grid: Grid) -> Any:
        contexts = plan.contexts_of(span)
        coded, symbols, planes = whole.encode(
            chunk,
            np.zeros(span.size, np.uint8) if contexts is None else contexts,
            np.uint8(plan.tables.count - 1),
            np.uint16(plan.first),
            np.uint16(plan.count),
            np.resize(plan.encode_rows, (TABLES, 256)).reshape(-1),
            shape=(grid.steps, grid.lanes),
            bits=plan.raw_bits,
        )
        hold(np.asarray(symbols), [np.asarray(plane) for plane in planes])
        return finish(Stream.of(*map(np.asarray, coded)))

    return Encoding(chunk.size, plan.tables, plan.encode_rows, prepare, finish, alone)


def _split(
    chunk: np.ndarray, contexts: np.ndarray | None, plan: Plan
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Symbols and raw planes of a chunk."""
    contexts = np.zeros(chunk.size, np.uint8) if contexts is None else contexts
    found: list[list[np.ndarray]] = []
    for part, size in pieces(chunk.size, rawbits.PROGRAMS):
        symbols, planes = rawbits.split(
            _filled(chunk[part], size),
            _filled(contexts[part], size),
            np.uint16(plan.first),
            np.uint16(plan.count),
            bits=plan.raw_bits,
            signed=True,
        )
        found.append([np.asarray(octets) for octets in (symbols, *planes)])
    symbols, *planes = (
        parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*found, strict=True)
    )
    widths = rawbits.widths(plan.raw_bits)
    return symbols[: chunk.size], [
        plane[: rawbits.plane_bytes(chunk.size, width)]
        for plane, width in zip(planes, widths, strict=True)
    ]


def _filled(part: np.ndarray, size: int) -> np.ndarray:
    """An array with zeros up to a size."""
    return part if part.size == size else np.pad(part, (0, size - part.size))


def _write_escapes(escaped: np.ndarray, plan: Plan) -> list[np.ndarray]:
    if not plan.escapes:
        return []
    beyond = escaped.astype(np.int64) - plan.base
    short = np.where((beyond > 0) & (beyond < IN_FULL), beyond, IN_FULL)
    short = np.where(escaped == 0, 0, short).astype(np.uint8)
    full = escaped[short == IN_FULL].astype("<u2")
    return [np.array([escaped.size], "<u4"), short, full]


def _read_escapes(reader: bits.Reader, plan: Plan) -> np.ndarray:
    if not plan.escapes:
        return np.zeros(0, np.uint16)
    short = reader.array("u1", reader.integer("<u4"))
    tops = np.where(short > 0, short + np.uint16(plan.base), 0).astype(np.uint16)
    full = short == IN_FULL
    tops[full] = reader.array("<u2", int(full.sum()))
    return tops


def decode(
    payloads: Sequence[np.ndarray],
    spans: Sequence[Span],
    outs: Sequence[np.ndarray],
    then: Then,
) -> list[Any]:
    """Writes the codes of each payload, uint16[size]; what `then` makes of them.

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.
    """
    return lanes.decode(
        [
            _decoding(payload, span, out, partial(then, i))
            for i, (payload, span, out) in enumerate(zip(payloads, spans, outs, strict=True))
        ]
    )


@dataclass(frozen=True, eq=False)
class Parsed:
    """A payload, cut up."""

    stream: Stream
    escaped: np.ndarray  # uint16, tops in order
    planes: list[np.ndarray]  # uint8; of the first plane what the states do not carry


def parse(payload: np.ndarray, size: int, plan: Plan) -> Parsed:
    """Cuts up the payload of `size` codes.

    Raises:
      CorruptError: a payload of the wrong length.
    """
    reader = bits.Reader(payload, "coded chunk")
    states, counts = lanes.read_sections(reader, size)
    escaped = _read_escapes(reader, plan)
    words = reader.array("<u2", int(counts.sum()))
    stored = [rawbits.plane_bytes(size, width) for width in rawbits.widths(plan.raw_bits)]
    stored[0] -= 2 * states.size
    planes = [reader.array("u1", n) for n in stored]
    reader.end()
    return Parsed(Stream(states, counts, words), escaped, planes)


def _decoding(
    payload: np.ndarray, span: Span, codes: np.ndarray, then: Callable[[np.ndarray], Any]
) -> Decoding:
    plan = plan_of(span)
    held: list[Any] = []

    def prepare() -> tuple[Stream, np.ndarray | None]:
        parsed = parse(payload, span.size, plan)
        contexts = plan.contexts_of(span)
        held[:] = parsed, contexts
        return parsed.stream, plan.numbers_of(contexts)

    def finish(symbols: np.ndarray, low: np.ndarray) -> Any:
        parsed, contexts = held
        (first, *rest) = parsed.planes
        planes = [buffers.joined(low.astype("<u2").view(np.uint8), first), *rest]
        _merge(symbols, contexts, planes, plan, codes)
        _put_escapes(codes, symbols, parsed.escaped, plan)
        return then(codes)

    def alone(grid: Grid) -> Any:
        parsed, contexts = parse(payload, span.size, plan), plan.contexts_of(span)
        if contexts is None:
            contexts = np.zeros(span.size, np.uint8)
        gathered = Gathered.of(grid, [parsed.stream])
        room = np.empty(2 * grid.lanes, np.uint8)
        found, symbols, final, reached = whole.decode(
            gathered.words,
            gathered.states,
            gathered.pointers,
            gathered.tables.reshape(-1),
            contexts.reshape(grid.steps, grid.lanes),
            np.uint8(plan.tables.count - 1),
            np.uint16(plan.first),
            [buffers.joined(room, parsed.planes[0]), *parsed.planes[1:]],
            bits=plan.raw_bits,
        )
        gathered.expect_sound(np.asarray(final), np.asarray(reached), grid.lanes)
        codes[:] = np.asarray(found).reshape(-1)
        _put_escapes(codes, np.asarray(symbols).reshape(-1), parsed.escaped, plan)
        return then(codes)

    return Decoding(span.size, plan.tables, prepare, finish, alone)


def _put_escapes(codes: np.ndarray, symbols: np.ndarray, escaped: np.ndarray, plan: Plan) -> None:
    """Writes the tops that have no symbol into the codes."""
    if plan.escapes:
        missed = _places_of(ESCAPE, symbols)
        if missed.size != escaped.size:
            raise CorruptError("escapes of a chunk", expected=missed.size, found=escaped.size)
        codes[missed] = rawbits.with_top(codes[missed], escaped, plan.raw_bits)


def _merge(
    symbols: np.ndarray,
    contexts: np.ndarray | None,
    planes: list[np.ndarray],
    plan: Plan,
    codes: np.ndarray,
) -> None:
    """Writes the codes of symbols and raw planes, uint16[size]."""
    contexts = np.zeros(symbols.size, np.uint8) if contexts is None else contexts
    widths = rawbits.widths(plan.raw_bits)
    for part, size in pieces(symbols.size, rawbits.PROGRAMS):
        own = [  # a piece begins with a block, and only the last one ends within one
            _filled(
                plane[part.start * width // 8 :][: rawbits.plane_bytes(size, width)],
                rawbits.plane_bytes(size, width),
            )
            for plane, width in zip(planes, widths, strict=True)
        ]
        merged = rawbits.merge(
            _filled(symbols[part], size),
            _filled(contexts[part], size),
            own,
            np.uint16(plan.first),
            bits=plan.raw_bits,
            signed=True,
            dtype="uint16",
        )
        codes[part] = np.asarray(merged)[: part.stop - part.start]


def _places_of(value: int, octets: np.ndarray) -> np.ndarray:
    """Where a rare byte lies among many."""
    found = octets == value
    whole = found.size // 8 * 8
    eights = np.flatnonzero(found[:whole].view(np.uint64) != 0)
    near = (eights[:, None] * 8 + np.arange(8)).reshape(-1)
    near = np.append(near, np.arange(whole, found.size))
    return near[found[near]]


def size_bound(size: int, layout: Layout) -> int:
    """Largest payload of a chunk, bytes: a lane emits at most a word a symbol."""
    widths = rawbits.widths(raw_bits_of(layout.element))
    planes = sum(rawbits.plane_bytes(size, width) for width in widths)
    return 8 + 6 * lanes.lane_count(size) + 5 * size + planes
