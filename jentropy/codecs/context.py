"""Codec `context`: exponent and two mantissa bits of BF16 and FP16, by scale of row and column.

What is coded of a code, and with which table, is in `context_head`, how an encoder chooses in
`fit_context`. A chunk of n codes in L = ceil(n / 8192) lanes:

    states, counts (`lanes.sections`)
    escapes        with flag 1: u4 number; u1 each: 0 is top 0, 1 to 254 top base + that, 255 a top
                   given in full, u2 each, after them
    words          u2, lane after lane
    raw planes     lowest bits first; the first 2 L bytes of the first plane are not there: bytes
                   2 l and 2 l + 1 are the low 16 bits of lane l's initial state
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from . import bits, buffers, calls, fused, lanes, rawbits
from .coding import Span
from .context_head import ESCAPE, NAME, TABLES, Head, head_of, raw_bits_of

__all__ = ["NAME", "decode", "encode", "size_bound"]

IN_FULL = 255  # an escape's byte
MOST = calls.LANES * calls.LANE  # codes of the program that splits and merges on a CPU


def size_bound(span: Span) -> int:
    """Largest payload of a chunk, bytes: a lane emits at most a word a symbol."""
    planes = sum(rawbits.plane_sizes(span.size, raw_bits_of(span.element)))
    return 8 + 6 * calls.lane_count(span.size) + 5 * span.size + planes


def encode(chunks: Sequence[np.ndarray], spans: Sequence[Span]) -> list[np.ndarray]:
    """Payloads of chunks of codes, uint8 each."""
    return lanes.encode(map(Encoding, chunks, spans))


class Encoding(lanes.Encoding):
    """A chunk to be coded.

    Attributes:
      codes: uint16[size].
      planes: of raw bits.
    """

    planes: Sequence[np.ndarray]

    def __init__(self, codes: np.ndarray, span: Span):
        self.codes, self.span, self.head = codes.reshape(-1), span, head_of(span)
        self.size, self.tables = span.size, self.head.tables
        self.carried = 2 * calls.lane_count(span.size)  # bytes of the first plane
        self.fused = calls.fills_a_call(span.size)

    def prepare(self) -> None:
        """Contexts; symbols and raw planes where no other program makes them."""
        self.contexts = self.head.classes.contexts_of(self.span)
        if not self.fused:
            self.table_ids = table_ids(self.head, self.contexts)
            self.symbols, self.planes = _split(self.codes, self.contexts, self.head)
            self.carries = self.planes[0][: self.carried].copy().view("<u2")

    def run_fused(self, call: calls.Call) -> Sequence[jax.Array]:
        """All in one program."""
        coded, symbols, planes = fused.encode(
            self.codes,
            self.contexts,
            self.head.table_mask,
            np.uint16(self.head.first),
            np.uint16(self.head.count),
            np.resize(self.tables.encode_rows, (TABLES, 256)).reshape(-1),
            shape=(call.steps, call.lanes),
            bits=self.head.raw_bits,
        )
        self.symbols, self.planes = np.asarray(symbols), [np.asarray(plane) for plane in planes]
        return coded

    def finish(self, states: np.ndarray, counts: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The payload."""
        first, *others = self.planes
        parts = [
            *lanes.sections(states, counts),
            *_write_escapes(self.codes, self.symbols, self.head),
            words.astype("<u2", copy=False),
            first[self.carried :],
            *others,
        ]
        return np.concatenate([part.view(np.uint8) for part in parts])


def table_ids(head: Head, contexts: np.ndarray) -> np.ndarray | None:
    """The table of each context; None: all have the first."""
    if head.tables.count == 1:
        return None
    ids = buffers.empty(contexts.shape, np.uint8)
    return np.bitwise_and(contexts, head.table_mask, out=ids)


def _split(
    codes: np.ndarray, contexts: np.ndarray, head: Head
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Symbols and raw planes of a chunk."""
    scalars = np.uint16(head.first), np.uint16(head.count)
    if _in_slabs(codes.size):
        parts = (_laid(part, MOST) for part in (codes, contexts))
        slabs = _slabs(codes.size)
        symbols, planes = rawbits.split_some(*parts, *scalars, slabs, bits=head.raw_bits)
    else:
        size = rawbits.program_size(codes.size)
        parts = (_filled(part, size) for part in (codes, contexts))
        symbols, planes = rawbits.split(*parts, *scalars, bits=head.raw_bits)
    ends = rawbits.plane_sizes(codes.size, head.raw_bits)
    cut = [np.asarray(plane)[:end] for plane, end in zip(planes, ends, strict=True)]
    return np.asarray(symbols)[: codes.size], cut


def _in_slabs(size: int) -> bool:
    """Whether so many codes are split and merged in the first slabs of MOST."""
    return jax.default_backend() == "cpu" and size <= MOST


def _slabs(size: int) -> np.int32:
    return np.int32(-(-size // (rawbits.SLAB * rawbits.BLOCK)))


def _laid(part: np.ndarray, size: int) -> np.ndarray:
    """An array at the beginning of a larger one: zeros to the end of its block, then anything."""
    if part.size == size:
        return part
    room = buffers.empty((size,), part.dtype)
    room[: part.size] = part
    room[part.size : part.size + rawbits.BLOCK] = 0
    return room


def _filled(part: np.ndarray, size: int) -> np.ndarray:
    """An array with zeros up to a size."""
    return part if part.size == size else np.pad(part, (0, size - part.size))


def _write_escapes(codes: np.ndarray, symbols: np.ndarray, head: Head) -> list[np.ndarray]:
    if not head.escapes:
        return []
    tops = rawbits.top_of(codes[_places_of(head.count, symbols)], head.raw_bits)
    beyond = tops.astype(np.int64) - head.base
    short = np.where((beyond > 0) & (beyond < IN_FULL), beyond, IN_FULL)
    short = np.where(tops == 0, 0, short).astype(np.uint8)
    return [np.array([tops.size], "<u4"), short, tops[short == IN_FULL].astype("<u2")]


def _read_escapes(reader: bits.Reader, head: Head) -> np.ndarray:
    """Tops of the escaped codes, uint16, in order."""
    if not head.escapes:
        return np.zeros(0, np.uint16)
    short = reader.array("u1", reader.integer("<u4"))
    tops = np.where(short > 0, short + np.uint16(head.base), 0).astype(np.uint16)
    full = short == IN_FULL
    tops[full] = reader.array("<u2", int(full.sum()))
    return tops


def decode(
    payloads: Sequence[np.ndarray], spans: Sequence[Span], outs: Sequence[np.ndarray]
) -> None:
    """Writes the codes of payloads, uint16[size].

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.
    """
    lanes.decode(map(Decoding, payloads, spans, outs))


class Decoding(lanes.Decoding):
    """A payload to be decoded.

    Attributes:
      codes: uint16[size], where its codes go; None: nowhere, it is only parsed.
      escaped: uint16, tops of the escaped codes in order.
      planes: of raw bits; of the first plane what the states do not carry.
    """

    escaped: np.ndarray
    planes: Sequence[np.ndarray]

    def __init__(self, payload: np.ndarray, span: Span, codes: np.ndarray | None = None):
        self.payload, self.span, self.codes, self.head = payload, span, codes, head_of(span)
        self.size, self.tables = span.size, self.head.tables
        self.fused = codes is not None and calls.fills_a_call(span.size)

    def parse(self) -> None:
        """Takes the payload apart.

        Raises:
          CorruptError: a payload of the wrong length.
        """
        reader = bits.Reader(self.payload, "coded chunk")
        self.states, self.counts = lanes.read_sections(reader, self.size)
        self.escaped = _read_escapes(reader, self.head)
        self.words = reader.array("<u2", int(self.counts.sum()))
        first, *others = rawbits.plane_sizes(self.size, self.head.raw_bits)
        sizes = first - 2 * self.states.size, *others
        self.planes = [reader.array("u1", size) for size in sizes]
        reader.end()

    def prepare(self) -> None:
        """Parts of the payload, contexts and tables."""
        self.parse()
        self.contexts = self.head.classes.contexts_of(self.span)
        if not self.fused:
            self.table_ids = table_ids(self.head, self.contexts)

    def run_fused(self, call: calls.Call, streams: tuple[np.ndarray, ...]) -> Sequence[jax.Array]:
        """All but escapes in one program."""
        carries = np.empty(2 * call.lanes, np.uint8)  # which the program puts there
        codes, *decoded = fused.decode(
            *streams,
            self.contexts.reshape(call.steps, call.lanes),
            self.head.table_mask,
            np.uint16(self.head.first),
            [buffers.joined(carries, self.planes[0]), *self.planes[1:]],
            bits=self.head.raw_bits,
        )
        assert self.codes is not None
        self.codes[:] = np.asarray(codes).reshape(-1)
        return decoded

    def finish(self, symbols: np.ndarray, carries: np.ndarray) -> None:
        """Writes the codes."""
        assert self.codes is not None
        if not self.fused:
            first = buffers.joined(carries.astype("<u2").view(np.uint8), self.planes[0])
            _merge(symbols, self.contexts, [first, *self.planes[1:]], self.head, self.codes)
        if self.head.escapes:
            missed = _places_of(ESCAPE, symbols)
            lanes.expect_escapes(missed.size, self.escaped.size)
            merged = self.codes[missed]
            self.codes[missed] = rawbits.with_top(merged, self.escaped, self.head.raw_bits)


def _merge(
    symbols: np.ndarray,
    contexts: np.ndarray,
    planes: list[np.ndarray],
    head: Head,
    codes: np.ndarray,
) -> None:
    """Writes the codes of symbols and raw planes, uint16[size]."""
    in_slabs, first = _in_slabs(codes.size), np.uint16(head.first)
    size = MOST if in_slabs else rawbits.program_size(codes.size)
    fill = _laid if in_slabs else _filled
    ends = rawbits.plane_sizes(size, head.raw_bits)
    parts = [fill(plane, end) for plane, end in zip(planes, ends, strict=True)]
    both = fill(symbols, size), fill(contexts, size)
    if in_slabs:
        merged = rawbits.merge_some(*both, parts, first, _slabs(codes.size), bits=head.raw_bits)
    else:
        merged = rawbits.merge(*both, parts, first, bits=head.raw_bits)
    codes[:] = np.asarray(merged).reshape(-1)[: codes.size]


def _places_of(value: int, symbols: np.ndarray) -> np.ndarray:
    """Where a rare byte lies among many."""
    is_there = symbols == value
    even = is_there.size // 8 * 8
    eights = np.flatnonzero(is_there[:even].view(np.uint64) != 0)
    near = np.append(
        (eights[:, None] * 8 + np.arange(8)).reshape(-1), np.arange(even, symbols.size)
    )
    return near[is_there[near]]
