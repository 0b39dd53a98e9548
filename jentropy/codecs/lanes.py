"""Streams of symbols to lanes and back, the lanes of many streams in one call.

A stream of n symbols takes ceil(n / LANE) lanes. Streams are gathered into calls of a few fixed
sizes, so that a checkpoint of any tensors compiles a handful of programs; calls run on all cores.
What a codec does before and after (`prepare`, `finish`) runs in the same threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jentropy.errors import CorruptError

from . import bits, rans
from .rans import FEW, LANE, LOWER, PRECISION, SLOTS
from .tables import IDLE, Tables

STEPS = (512, 2048, LANE)  # of compiled programs
LANES = (32, 64, 96, 128, 192, 256)  # of compiled programs; what they touch stays in a core's cache
DEVICE_LANES = 1 << 17  # of a call on an accelerator, which needs many at once
TABLES = 63  # of a call that mixes streams
BYTES = 255  # a count that spreads less takes a byte


@dataclass(frozen=True, slots=True)
class Symbols:
    """What a stream codes.

    Attributes:
      symbols: uint8[n], rows of `table`.
      contexts: uint8[n], the table of each symbol; None: the first.
      low: uint16[lanes], low bits of each lane's initial state; None: 0.
    """

    symbols: np.ndarray
    contexts: np.ndarray | None = None
    low: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """Coded symbols: of each lane a state and a word count, and the lanes' words in order."""

    states: np.ndarray  # uint32[lanes]
    counts: np.ndarray  # int64[lanes], words of each lane
    words: np.ndarray  # uint16[sum of counts]

    def sections(self) -> list[np.ndarray]:
        """As it is stored, but for the words: states, the least count, and what each has more."""
        least = int(self.counts.min())
        narrow = int(self.counts.max()) - least < BYTES and least < 0xFFFF
        return [
            self.states.astype("<u4"),
            np.array([least if narrow else 0xFFFF], "<u2"),
            (self.counts - least).astype(np.uint8) if narrow else self.counts.astype("<u2"),
        ]


def read_sections(reader: bits.Reader, size: int) -> tuple[np.ndarray, np.ndarray]:
    """States and counts that `Stream.sections` stored for a stream of `size` symbols."""
    lanes = lane_count(size)
    states = reader.array("<u4", lanes)
    least = reader.integer("<u2")
    if least == 0xFFFF:
        return states, reader.array("<u2", lanes).astype(np.int64)
    return states, reader.array("u1", lanes).astype(np.int64) + least


@dataclass(frozen=True, slots=True)
class Encoding:
    """A stream to be coded.

    Attributes:
      size: its symbols, more than 0.
      tables: of its symbols.
      rows: uint32[contexts, 256], what a symbol of each context looks up (`Tables.encode_rows`).
      prepare: gives the symbols.
      finish: takes the coded stream; `encode` returns what it returns.
    """

    size: int
    tables: Tables
    rows: np.ndarray
    prepare: Callable[[], Symbols]
    finish: Callable[[Stream], Any]


@dataclass(frozen=True, slots=True)
class Decoding:
    """A stream to be decoded.

    Attributes:
      size: its symbols, more than 0.
      tables: of its symbols.
      stream: what was coded.
      contexts: gives uint8[size], the table of each symbol; None: the first.
      finish: takes the symbols (as `tables.shown` has them) and the low bits of the initial
        states; `decode` returns what it returns.
    """

    size: int
    tables: Tables
    stream: Stream
    contexts: Callable[[], np.ndarray] | None
    finish: Callable[[np.ndarray, np.ndarray], Any]


def lane_count(symbols: int) -> int:
    """Lanes that a stream of symbols takes."""
    return -(-symbols // LANE)


def _steps(size: int) -> int:
    return -(-size // lane_count(size)) if size else 0


def _batch_lanes() -> int:
    return LANES[-1] if jax.default_backend() == "cpu" else DEVICE_LANES


def batch_symbols() -> int:
    """Symbols that are worth giving to `encode` or `decode` together: some calls of each core.

    They are all in memory at once, hence the bound on the cores.
    """
    calls = 4 * min(os.cpu_count() or 1, 8) if jax.default_backend() == "cpu" else 1
    return calls * _batch_lanes() * LANE


def _calls(jobs: Sequence[Encoding | Decoding]) -> list[list[int]]:
    """Streams that go into one call, largest calls first."""
    limit = _batch_lanes()
    calls: list[list[int]] = []
    open_calls: dict[int, tuple[list[int], int, dict[int, int]]] = {}
    for i, job in enumerate(jobs):
        lanes = lane_count(job.size)
        steps = next(s for s in STEPS if s >= _steps(job.size))
        call, used, tables = open_calls.get(steps, ([], limit + 1, {}))
        needed = tables | {id(job.tables): job.tables.count}
        if used + lanes > limit or sum(needed.values()) > TABLES:
            call, used, needed = [], 0, {id(job.tables): job.tables.count}
            calls.append(call)
        call.append(i)
        open_calls[steps] = call, used + lanes, needed
    return sorted(calls, key=lambda call: -sum(jobs[i].size for i in call))


def _run(jobs: Sequence[Any], run_call: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """Results of all jobs, in order; a call's jobs go through `run_call` together."""
    calls = _calls(jobs)
    results: list[Any] = [None] * len(jobs)
    workers = max(1, min(os.cpu_count() or 1, len(calls)))
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda call: run_call([jobs[i] for i in call]), calls)
        for call, parts in zip(calls, done, strict=True):
            for i, part in zip(call, parts, strict=True):
                results[i] = part
    return results


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where streams lie in the lanes of a call."""

    steps: int
    lanes: int
    columns: list[slice]  # of each stream
    bases: list[int]  # first table of each stream
    tables: list[Tables]  # in order

    @classmethod
    def of(cls, jobs: Sequence[Encoding | Decoding]) -> _Grid:
        ends = np.cumsum([lane_count(job.size) for job in jobs])
        firsts: dict[int, int] = {}
        tables: list[Tables] = []
        for job in jobs:
            if id(job.tables) not in firsts:
                firsts[id(job.tables)] = sum(t.count for t in tables)
                tables.append(job.tables)
        used = int(ends[-1])
        return cls(
            steps=next(s for s in STEPS if s >= max(_steps(job.size) for job in jobs)),
            lanes=next((n for n in LANES if n >= used), 1 << (used - 1).bit_length()),
            columns=[
                slice(int(end) - lane_count(job.size), int(end))
                for end, job in zip(ends, jobs, strict=True)
            ],
            bases=[firsts[id(job.tables)] for job in jobs],
            tables=tables,
        )

    def fills(self, size: int) -> bool:
        """Whether a stream of this size takes the whole call."""
        return size == self.steps * self.lanes


def _lay(grid: np.ndarray, columns: slice, values: np.ndarray, size: int) -> None:
    """Puts a stream's values, in order, into its columns of [steps, lanes]."""
    lanes = columns.stop - columns.start
    whole, left = divmod(size, lanes)
    view = grid[:, columns]
    view[:whole] = values[: whole * lanes].reshape(whole, lanes)
    if left:
        view[whole, :left] = values[whole * lanes :]


def _pick(grid: np.ndarray, columns: slice, size: int) -> np.ndarray:
    """The inverse of `_lay`."""
    lanes = columns.stop - columns.start
    whole, left = divmod(size, lanes)
    values = np.empty(size, grid.dtype)
    values[: whole * lanes].reshape(whole, lanes)[...] = grid[:whole, columns]
    if left:
        values[whole * lanes :] = grid[whole, columns][:left]
    return values


def encode(jobs: Sequence[Encoding]) -> list[Any]:
    """Codes streams; what each one's `finish` makes of it, in order."""
    return _run(jobs, _encode_call)


def _encode_call(jobs: list[Encoding]) -> list[Any]:
    grid = _Grid.of(jobs)
    idle = sum(tables.count for tables in grid.tables)
    rows = np.zeros((256, 256), np.uint32)
    rows[idle] = SLOTS << 16
    entries: np.ndarray = np.empty(0, np.uint16)
    if not grid.fills(jobs[0].size):
        entries = np.full((grid.steps, grid.lanes), idle << 8, np.uint16)
    initial = np.full(grid.lanes, LOWER, np.uint32)
    for job, columns, base in zip(jobs, grid.columns, grid.bases, strict=True):
        rows[base : base + job.tables.count] = job.rows
        given = job.prepare()
        entry = given.symbols.astype(np.uint16)
        if given.contexts is not None:
            entry |= (given.contexts.astype(np.uint16) + np.uint16(base)) << 8
        elif base:
            entry |= np.uint16(base << 8)
        if given.low is not None:
            initial[columns] |= given.low
        if grid.fills(job.size):
            entries = entry.reshape(grid.steps, grid.lanes)
        else:
            _lay(entries, columns, entry, job.size)
    states, words, emitted = map(np.asarray, rans.encode(entries, initial, rows.reshape(-1)))
    results = []
    for job, columns in zip(jobs, grid.columns, strict=True):
        kept = np.flatnonzero(emitted[columns].reshape(-1))
        lanes = columns.stop - columns.start
        ends = np.searchsorted(kept, np.arange(1, lanes + 1) * grid.steps)
        own = words[columns].reshape(-1).take(kept)
        results.append(job.finish(Stream(states[columns], np.diff(ends, prepend=0), own)))
    return results


def decode(jobs: Sequence[Decoding]) -> list[Any]:
    """Decodes streams; what each one's `finish` makes of it, in order.

    Raises:
      CorruptError: a lane that does not end where an encoder begins.
    """
    return _run(jobs, _decode_call)


def _decode_call(jobs: list[Decoding]) -> list[Any]:
    grid = _Grid.of(jobs)
    count = sum(tables.count for tables in grid.tables)
    few = count < FEW
    rows = np.empty((FEW if few else 1 << count.bit_length(), SLOTS), np.uint32)
    for base, job in zip(grid.bases, jobs, strict=True):
        rows[base : base + job.tables.count] = job.tables.decode_rows
    idle, shift = len(rows) - 1, PRECISION if few else 0
    rows[idle] = IDLE
    contexts = np.full((grid.steps, grid.lanes), idle << shift, np.uint16)
    states = np.full(grid.lanes, LOWER, np.uint32)
    pointers, ends = np.zeros(grid.lanes, np.uint32), np.zeros(grid.lanes, np.int64)
    total = sum(job.stream.words.size for job in jobs)
    words = np.zeros(1 << max(12, total.bit_length()), np.uint16)
    filled = 0
    for job, columns, base in zip(jobs, grid.columns, grid.bases, strict=True):
        stream = job.stream
        states[columns] = stream.states
        ends[columns] = filled + np.cumsum(stream.counts)
        pointers[columns] = ends[columns] - stream.counts
        words[filled : filled + stream.words.size] = stream.words
        filled += stream.words.size
        if job.contexts is None:
            own = np.broadcast_to(np.uint16(base << shift), job.size)
        else:
            own = (job.contexts().astype(np.uint16) + np.uint16(base)) << np.uint16(shift)
        if grid.fills(job.size):
            contexts = np.ascontiguousarray(own).reshape(grid.steps, grid.lanes)
        else:
            _lay(contexts, columns, own, job.size)
    symbols, final, reached = map(
        np.asarray, rans.decode(words, states, pointers, rows.reshape(-1), contexts)
    )
    used = grid.columns[-1].stop
    sound = ((final >> 16 == 1) & (reached == ends))[:used]
    if not sound.all():
        raise CorruptError(
            "coded symbols",
            expected="every lane to end in an initial state",
            found=f"{int((~sound).sum())} of {used} lanes elsewhere",
        )
    return [
        job.finish(
            symbols.reshape(-1) if grid.fills(job.size) else _pick(symbols, columns, job.size),
            final[columns].astype(np.uint16),
        )
        for job, columns in zip(jobs, grid.columns, strict=True)
    ]
