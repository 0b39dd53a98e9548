"""Streams of symbols to lanes and back, the lanes of many streams in one call.

A stream of n symbols takes ceil(n / LANE) lanes. Streams are gathered into calls of a few fixed
sizes, so that a checkpoint of any tensors compiles a handful of programs; calls run on all cores.
What a codec does before and after (`prepare`, `finish`) runs in the same threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from jentropy.errors import CorruptError

from . import bits, buffers, cores, rans
from .rans import FEW, LANE, LOWER, SLOTS
from .tables import IDLE, Tables

STEPS = (512, 2048, LANE)  # of compiled programs
LANES = (32, 64, 96, 128)  # of compiled programs; a whole chunk has 128
FULL = {lanes * LANE for lanes in LANES}  # symbols of a stream that fills a program
DEVICE_LANES = 1 << 17  # of a call on an accelerator, which needs many at once
TABLES = 31  # of a call that mixes streams: what its cores' second caches hold
BYTES = 255  # a count that spreads less takes a byte


@dataclass(frozen=True, slots=True)
class Symbols:
    """What a stream codes.

    Attributes:
      symbols: uint8[n], columns of `Encoding.rows`.
      numbers: uint8[n], which of the stream's tables codes each; None: the first.
      low: uint16[lanes], low bits of each lane's initial state; None: 0.
    """

    symbols: np.ndarray
    numbers: np.ndarray | None = None
    low: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """Coded symbols: of each lane a state and a word count, and the lanes' words in order."""

    states: np.ndarray  # uint32[lanes]
    counts: np.ndarray  # int64[lanes], words of each lane
    words: np.ndarray  # uint16[sum of counts]

    @classmethod
    def of(cls, states: np.ndarray, words: np.ndarray, emitted: np.ndarray) -> Stream:
        """What `rans.encode` gave of some lanes, without the words that are not emitted."""
        kept = np.flatnonzero(emitted.reshape(-1))
        lanes, steps = emitted.shape
        ends = np.searchsorted(kept, np.arange(1, lanes + 1) * steps)
        return cls(states, np.diff(ends, prepend=0), words.reshape(-1).take(kept))

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
      rows: uint32[T, 256], what a symbol looks up in each table (`Tables.encode_rows`).
      prepare: gives the symbols.
      finish: takes the coded stream; `encode` returns what it returns.
      alone: does it all in one program where the stream is a call of its own, and returns what
        `finish` would; None: it is coded as others are.
    """

    size: int
    tables: Tables
    rows: np.ndarray
    prepare: Callable[[], Symbols]
    finish: Callable[[Stream], Any]
    alone: Callable[[Grid], Any] | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """A stream to be decoded.

    Attributes:
      size: its symbols, more than 0.
      tables: of its symbols.
      prepare: gives what was coded, and which of the tables each symbol has, uint8[size], or None
        where it is the first.
      finish: takes the symbols (as `tables.shown` has them) and the low bits of the initial
        states; `decode` returns what it returns.
      alone: does it all in one program where the stream is a call of its own, and returns what
        `finish` would; None: it is decoded as others are.
    """

    size: int
    tables: Tables
    prepare: Callable[[], tuple[Stream, np.ndarray | None]]
    finish: Callable[[np.ndarray, np.ndarray], Any]
    alone: Callable[[Grid], Any] | None = None


def lane_count(symbols: int) -> int:
    """Lanes that a stream of symbols takes."""
    return -(-symbols // LANE)


def _program_steps(size: int) -> int:
    """Steps of the program that codes a stream."""
    steps = -(-size // lane_count(size))
    return next(s for s in STEPS if s >= steps)


def batch_symbols() -> int:
    """Symbols that are worth giving to `encode` or `decode` together: some calls of each core.

    They are all in memory at once, hence the bound on the cores.
    """
    if jax.default_backend() != "cpu":
        return DEVICE_LANES * LANE
    return 16 * min(cores.count(), 8) * LANES[-1] * LANE


@runtime_checkable
class Job(Protocol):
    """A stream to be coded or decoded."""

    @property
    def size(self) -> int:
        """Its symbols, more than 0."""

    @property
    def tables(self) -> Tables:
        """Of its symbols."""


def calls_of(jobs: Sequence[Job], limit: int, most_tables: int) -> list[list[int]]:
    """Streams that go into one call, largest calls first.

    The longest streams go first, each into the first call that has room for it.

    Args:
      limit: lanes of a call, if one stream does not have more.
      most_tables: of a call.
    """
    calls: list[_Call] = []
    for i in sorted(range(len(jobs)), key=lambda i: -jobs[i].size):
        job = jobs[i]
        steps, lanes = _program_steps(job.size), lane_count(job.size)
        own = {id(job.tables): job.tables.count}
        for call in calls:
            fits = call.steps == steps and call.lanes + lanes <= limit
            if fits and sum((call.tables | own).values()) <= most_tables:
                break
        else:
            call = _Call(steps)
            calls.append(call)
        call.jobs.append(i)
        call.lanes += lanes
        call.tables |= own
    calls.sort(key=lambda call: -call.steps * call.lanes)
    return [call.jobs for call in calls]


@dataclass(slots=True)
class _Call:
    """Streams that share a call, so far."""

    steps: int
    lanes: int = 0
    jobs: list[int] = field(default_factory=list)
    tables: dict[int, int] = field(default_factory=dict)  # counts by id


def _alone(job: Encoding | Decoding) -> Callable[[Grid], Any] | None:
    """What codes a stream that is a call of its own; None: it shares one."""
    return job.alone if job.size in FULL and jax.default_backend() == "cpu" else None


def _run(jobs: Sequence[Any], run_call: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """Results of all jobs, in order; a call's jobs go through `run_call` together."""
    shared = [i for i, job in enumerate(jobs) if _alone(job) is None]
    limit = LANES[-1] if jax.default_backend() == "cpu" else DEVICE_LANES
    calls = [[shared[i] for i in c] for c in calls_of([jobs[i] for i in shared], limit, TABLES)]
    calls += [[i] for i, job in enumerate(jobs) if _alone(job) is not None]
    calls.sort(key=lambda call: -sum(jobs[i].size for i in call))
    results: list[Any] = [None] * len(jobs)

    def run(call: list[int]) -> list[Any]:
        own = [jobs[i] for i in call]
        alone = _alone(own[0])
        return run_call(own) if alone is None else [alone(Grid.of(own))]

    done = cores.each(run, calls)
    for call, parts in zip(calls, done, strict=True):
        for i, part in zip(call, parts, strict=True):
            results[i] = part
    return results


@dataclass(frozen=True, slots=True)
class Grid:
    """Where streams lie in the lanes of a call."""

    steps: int
    lanes: int
    columns: list[slice]  # of each stream
    bases: list[int]  # first table of each stream
    tables: list[Tables]  # in order

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Grid:
        ends = np.cumsum([lane_count(job.size) for job in jobs])
        firsts: dict[int, int] = {}
        tables: list[Tables] = []
        for job in jobs:
            if id(job.tables) not in firsts:
                firsts[id(job.tables)] = sum(t.count for t in tables)
                tables.append(job.tables)
        used = int(ends[-1])
        return cls(
            steps=max(_program_steps(job.size) for job in jobs),
            lanes=next((n for n in LANES if n >= used), 1 << (used - 1).bit_length()),
            columns=[
                slice(int(end) - lane_count(job.size), int(end))
                for end, job in zip(ends, jobs, strict=True)
            ],
            bases=[firsts[id(job.tables)] for job in jobs],
            tables=tables,
        )

    @property
    def few(self) -> bool:
        """Whether a 16-bit index reaches the slots of all tables and an idle one."""
        return sum(tables.count for tables in self.tables) < FEW

    def spread(self, parts: Sequence[np.ndarray], sizes: Sequence[int], idle: int) -> np.ndarray:
        """Streams' values in their columns, `idle` elsewhere. uint8[steps, lanes]."""
        if parts[0].size == self.steps * self.lanes:
            return parts[0].reshape(self.steps, self.lanes)
        grid = buffers.empty((self.steps, self.lanes), np.uint8)
        if sum(sizes) < grid.size:
            grid.fill(idle)
        for part, size, columns in zip(parts, sizes, self.columns, strict=True):
            _lay(grid, columns, part, size)
        return grid

    def numbers(
        self, parts: Sequence[np.ndarray | None], sizes: Sequence[int], idle: int
    ) -> np.ndarray:
        """Which of the call's tables every symbol has. uint8[steps, lanes]."""
        of_call = [
            np.array(base, np.uint8) if part is None else part + np.uint8(base) if base else part
            for part, base in zip(parts, self.bases, strict=True)
        ]
        return self.spread(of_call, sizes, idle)


def _lay(grid: np.ndarray, columns: slice, values: np.ndarray, size: int) -> None:
    """Puts a stream's values (or one for all), in order, into its columns of [steps, lanes]."""
    lanes = columns.stop - columns.start
    whole, left = divmod(size, lanes)
    view = grid[:, columns]
    view[:whole] = values[: whole * lanes].reshape(whole, lanes) if values.ndim else values
    if left:
        view[whole, :left] = values[whole * lanes :] if values.ndim else values


def _pick(grid: np.ndarray, columns: slice, size: int) -> np.ndarray:
    """The inverse of `_lay`."""
    lanes = columns.stop - columns.start
    whole, left = divmod(size, lanes)
    if size == grid.size:
        return grid.reshape(-1)
    values = np.empty(size, grid.dtype)
    values[: whole * lanes].reshape(whole, lanes)[...] = grid[:whole, columns]
    if left:
        values[whole * lanes :] = grid[whole, columns][:left]
    return values


def encode(jobs: Sequence[Encoding]) -> list[Any]:
    """Codes streams; what each one's `finish` makes of it, in order."""
    return _run(jobs, _encode_call)


def _encode_call(jobs: list[Encoding]) -> list[Any]:
    grid = Grid.of(jobs)
    rows = np.zeros((256, 256), np.uint32)
    rows[-1] = SLOTS << 16
    initial = np.full(grid.lanes, LOWER, np.uint32)
    given = [job.prepare() for job in jobs]
    for job, part, columns, base in zip(jobs, given, grid.columns, grid.bases, strict=True):
        rows[base : base + job.tables.count] = job.rows
        if part.low is not None:
            initial[columns] |= part.low
    sizes = [job.size for job in jobs]
    states, words, emitted = jax.device_get(
        rans.encode(
            grid.spread([part.symbols for part in given], sizes, 0),
            grid.numbers([part.numbers for part in given], sizes, 255),
            initial,
            rows.reshape(-1),
        ),
    )
    return [
        job.finish(Stream.of(states[columns], words[columns], emitted[columns]))
        for job, columns in zip(jobs, grid.columns, strict=True)
    ]


def decode(jobs: Sequence[Decoding]) -> list[Any]:
    """Decodes streams; what each one's `finish` makes of it, in order.

    Raises:
      CorruptError: a lane that does not end where an encoder begins.
    """
    return _run(jobs, _decode_call)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The streams of a call, for `rans.decode`."""

    words: np.ndarray  # uint16[2^k]
    states: np.ndarray  # uint32[lanes]
    pointers: np.ndarray  # uint32[lanes]
    ends: np.ndarray  # uint32[lanes], where the pointers have to be afterwards
    tables: np.ndarray  # uint32[tables, 4096], the last one for places that have no symbol

    @classmethod
    def of(cls, grid: Grid, streams: Sequence[Stream]) -> Gathered:
        """Lays streams side by side."""
        count = sum(tables.count for tables in grid.tables)
        number = FEW if grid.few else 1 << count.bit_length()
        tables = buffers.empty((number, SLOTS), np.uint32)
        first = 0
        for own in grid.tables:
            tables[first : first + own.count] = own.decode_rows
            first += own.count
        tables[-1] = IDLE
        states = np.full(grid.lanes, LOWER, np.uint32)
        pointers, ends = np.zeros(grid.lanes, np.uint32), np.zeros(grid.lanes, np.uint32)
        total = sum(stream.words.size for stream in streams)
        most = grid.steps * grid.lanes  # a word a symbol; a quarter is enough for nearly all
        room = 1 << (max(total, most // 4) - 1).bit_length()
        words = buffers.empty((room,), np.uint16)
        filled = 0
        for stream, columns in zip(streams, grid.columns, strict=True):
            states[columns] = stream.states
            ends[columns] = filled + np.cumsum(stream.counts)
            pointers[columns] = ends[columns] - stream.counts
            words[filled : filled + stream.words.size] = stream.words
            filled += stream.words.size
        words[filled:] = 0
        return cls(words, states, pointers, ends, tables)

    def expect_sound(self, final: np.ndarray, reached: np.ndarray, used: int) -> None:
        """Raises CorruptError unless the lanes that are used ended well."""
        expect_sound(bool(((final >> 16 == 1) & (reached == self.ends))[:used].all()))


def expect_sound(sound: bool) -> None:
    """Raises CorruptError unless every lane ended where an encoder begins, its words used up."""
    if not sound:
        raise CorruptError(
            "coded symbols",
            expected="every lane to end in an initial state",
            found="lanes elsewhere",
        )


def _decode_call(jobs: list[Decoding]) -> list[Any]:
    grid = Grid.of(jobs)
    given = [job.prepare() for job in jobs]
    gathered = Gathered.of(grid, [stream for stream, _ in given])
    idle = len(gathered.tables) - 1
    symbols, final, reached = jax.device_get(
        rans.decode(
            gathered.words,
            gathered.states,
            gathered.pointers,
            gathered.tables.reshape(-1),
            grid.numbers([part for _, part in given], [job.size for job in jobs], idle),
        ),
    )
    gathered.expect_sound(final, reached, grid.columns[-1].stop)
    return [
        job.finish(_pick(symbols, columns, job.size), final[columns].astype(np.uint16))
        for job, columns in zip(jobs, grid.columns, strict=True)
    ]
