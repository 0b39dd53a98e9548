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

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from . import bits, buffers, calls, fused, lanes, rawbits, slabs
from .coding import Span
from .context_head import ESCAPE, NAME, TABLES, Head, head_of, raw_bits_of

__all__ = ["NAME", "decode", "encode", "size_bound"]

IN_FULL = 255  # an escape's byte


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

    @classmethod
    def prepare_all(cls, jobs: Sequence[Encoding]) -> None:
        """Contexts; symbols and raw planes where no other program makes them."""
        for some, laid in _side_by_side(jobs):
            contexts = laid.room(np.uint8)
            for job, room in zip(some, laid.parts(contexts), strict=True):
                job.contexts = job.head.classes.contexts_of(job.span, room)
            heads = [job.head for job in some]
            symbols, planes = laid.split(
                laid.laid([job.codes for job in some]),
                contexts,
                [head.first for head in heads],
                [head.count for head in heads],
            )
            split = laid.parts(symbols), laid.plane_parts(planes)
            for job, *found in zip(some, *split, strict=True):
                job.take(*found)

    def prepare(self) -> None:
        """The same of one job."""
        self.contexts = self.head.classes.contexts_of(self.span)
        if not self.fused:
            self.take(*_split(self.codes, self.contexts, self.head))

    def take(self, symbols: np.ndarray, planes: Sequence[np.ndarray]) -> None:
        """What the coder takes of symbols and raw planes."""
        self.table_ids, self.table_mask = self.contexts, self.head.table_mask
        self.symbols, self.planes = symbols, planes
        self.carries = planes[0][: self.carried].copy().view("<u2")

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


def _by_bits(jobs: Sequence[Any]) -> Iterator[tuple[list[Any], int]]:
    """Jobs whose codes have as many raw bits, and how many."""
    for raw_bits in sorted({job.head.raw_bits for job in jobs}):
        yield [job for job in jobs if job.head.raw_bits == raw_bits], raw_bits


def _side_by_side(jobs: Sequence[Any]) -> Iterator[tuple[list[Any], slabs.Slabs]]:
    """Jobs whose codes one program splits or merges, and where they lie; prepares all others."""
    for some, raw_bits in _by_bits(jobs):
        sizes = [job.size for job in some]
        if not some[0].fused and slabs.hold(sizes):
            yield some, slabs.Slabs(sizes, raw_bits)
            continue
        for job in some:
            job.prepare()


def _split(
    codes: np.ndarray, contexts: np.ndarray, head: Head
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Symbols and raw planes of a chunk."""
    size = rawbits.program_size(codes.size)
    parts = (_filled(part, size) for part in (codes, contexts))
    scalars = np.uint16(head.first), np.uint16(head.count)
    symbols, planes = rawbits.split(*parts, *scalars, bits=head.raw_bits)
    ends = rawbits.plane_sizes(codes.size, head.raw_bits)
    cut = [np.asarray(plane)[:end] for plane, end in zip(planes, ends, strict=True)]
    return np.asarray(symbols)[: codes.size], cut


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
      shared: with the other jobs of its call, where they are merged together.
    """

    escaped: np.ndarray
    planes: Sequence[np.ndarray]
    shared: _Shared | None = None

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

    def prepare(self, contexts: np.ndarray | None = None) -> None:
        """Parts of the payload, contexts (in that room) and tables."""
        self.parse()
        self.contexts = self.head.classes.contexts_of(self.span, contexts)
        self.table_ids, self.table_mask = self.contexts, self.head.table_mask

    @classmethod
    def prepare_all(cls, jobs: Sequence[Decoding]) -> None:
        """The same of all jobs of a call."""
        for some, laid in _side_by_side(jobs):
            shared = _Shared(laid, laid.room(np.uint8), laid.room(np.uint8))
            rooms = laid.parts(shared.contexts), laid.parts(shared.symbols)
            for job, contexts, symbols in zip(some, *rooms, strict=True):
                job.prepare(contexts)
                job.room, job.shared = symbols, shared

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

    @classmethod
    def finish_all(
        cls, jobs: Sequence[Decoding], parts: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[None]:
        """Writes the codes of all jobs of a call."""
        carries = {id(job): carries for job, (_, carries) in zip(jobs, parts, strict=True)}
        for some, _ in _by_bits([job for job in jobs if job.shared is not None]):
            shared = some[0].shared
            assert shared is not None
            planes = shared.laid.plane_rooms()
            for job, rooms in zip(some, shared.laid.plane_parts(planes), strict=True):
                for room, plane in zip(rooms, job.planes, strict=True):
                    room[room.size - plane.size :] = plane
                job_carries = carries[id(job)].astype("<u2", copy=False).view(np.uint8)
                rooms[0][: job_carries.size] = job_carries
            firsts = [job.head.first for job in some]
            merged = shared.laid.merge(shared.symbols, shared.contexts, planes, firsts)
            for job, codes in zip(some, shared.laid.parts(merged), strict=True):
                assert job.codes is not None
                job.codes[:] = codes
        for job, part in zip(jobs, parts, strict=True):
            job.finish(*part)
        return [None] * len(jobs)

    def finish(self, symbols: np.ndarray, carries: np.ndarray) -> None:
        """Writes the codes, but for those that are there; then escapes."""
        assert self.codes is not None
        if not self.fused and self.shared is None:
            first = buffers.joined(carries.astype("<u2").view(np.uint8), self.planes[0])
            planes = [first, *self.planes[1:]]
            self.codes[:] = _merged(symbols, self.contexts, planes, self.head)
        if self.head.escapes:
            missed = _places_of(ESCAPE, symbols)
            lanes.expect_escapes(missed.size, self.escaped.size)
            merged = self.codes[missed]
            self.codes[missed] = rawbits.with_top(merged, self.escaped, self.head.raw_bits)


class _Shared(NamedTuple):
    """What jobs of a call have together, uint8 of each code."""

    laid: slabs.Slabs
    contexts: np.ndarray
    symbols: np.ndarray


def _merged(
    symbols: np.ndarray, contexts: np.ndarray, planes: Sequence[np.ndarray], head: Head
) -> np.ndarray:
    """Codes of symbols and raw planes, uint16[size]."""
    size = rawbits.program_size(symbols.size)
    ends = rawbits.plane_sizes(size, head.raw_bits)
    parts = [_filled(plane, end) for plane, end in zip(planes, ends, strict=True)]
    both = _filled(symbols, size), _filled(contexts, size)
    merged = rawbits.merge(*both, parts, np.uint16(head.first), bits=head.raw_bits)
    return np.asarray(merged).reshape(-1)[: symbols.size]


def _places_of(value: int, symbols: np.ndarray) -> np.ndarray:
    """Where a rare byte lies among many."""
    is_there = symbols == value
    even = is_there.size // 8 * 8
    eights = np.flatnonzero(is_there[:even].view(np.uint64) != 0)
    near = np.append(
        (eights[:, None] * 8 + np.arange(8)).reshape(-1), np.arange(even, symbols.size)
    )
    return near[is_there[near]]
