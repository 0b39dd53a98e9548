"""Streams of symbols dealt out to calls of a few fixed sizes.

A stream of n symbols takes ceil(n / LANE) lanes. Streams are gathered into calls of a few fixed
sizes, so that a checkpoint of any tensors compiles a handful of programs. A job that is `fused` has
a call of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from . import buffers, threads
from .rans import FEW as FEW_TABLES
from .rans import LANE, LOWER, SLOTS
from .tables import IDLE, Tables

STEPS = (512, LANE)  # of compiled programs
LANES = 128  # of a program; a chunk of 2^20 symbols has as many
BATCH = 32, 64  # calls, at the least and at the most, that are worth giving to a codec together
FEW = 31  # calls, fewer than a full batch, that cost less than compiling programs that fit better
MANY_TABLES = 64  # of a decoder's program, if not few: what a core's second cache holds
OPEN_CALLS = 32  # that still take streams
DEVICE_LANES = 1 << 17  # of a call on an accelerator, which needs many at once


class Job:
    """A stream to be coded or decoded.

    Attributes:
      size: its symbols, more than 0.
      tables: of its symbols.
      table_ids: uint8[size]; None: 0.
      table_mask: a symbol has table `table_id & mask`.
      fused: whether a program of its codec's codes it: `run_fused`, which takes its call (and, to
        decode, `Call.streams`) and gives what `rans.encode` or `rans.decode` does.
    """

    size: int
    tables: Tables
    table_ids: np.ndarray | None = None
    table_mask: np.uint8 = np.uint8(255)
    fused: bool = False

    def prepare(self) -> None:
        """Makes what the coder takes, where it is not there from the beginning."""

    @classmethod
    def prepare_all(cls, jobs: Sequence[Any]) -> None:
        """The same of all jobs of a call, which are of this class."""
        for job in jobs:
            job.prepare()


def lane_count(symbols: int) -> int:
    """Lanes that a stream of symbols takes."""
    return -(-symbols // LANE)


def fills_a_call(symbols: int) -> bool:
    """Whether a stream of so many symbols has all lanes and steps of a program on CPU."""
    return jax.default_backend() == "cpu" and symbols == LANES * LANE


def batch_symbols() -> int:
    """Symbols that are worth giving to a codec together: some calls of each thread.

    They are all in memory at once, eight bytes of it each as they are decoded: hence the bound on
    the threads, which keeps a process below a GiB.

    Returns:
      A multiple of a lane's symbols.

    Example:
      >>> batch_symbols() % LANE
      0
    """
    if jax.default_backend() != "cpu":
        return DEVICE_LANES * LANE
    least, most = BATCH
    return min(max(least, 16 * threads.count()), most) * LANES * LANE


@dataclass(slots=True, eq=False)
class Call:
    """Streams that are coded together, and where each lies in the lanes.

    Attributes:
      steps: symbols of a lane.
      used: lanes of all streams.
      places: of the jobs, among those that calls were made of.
      columns: lanes of each job.
      bases: each job's first table.
      tables: in order.
      table_count: of all of them.
    """

    steps: int
    used: int = 0
    places: list[int] = field(default_factory=list)
    jobs: list[Any] = field(default_factory=list)
    columns: list[slice] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    tables: list[Tables] = field(default_factory=list)
    table_count: int = 0
    _base_of: dict[Tables, int] = field(default_factory=dict)

    @property
    def lanes(self) -> int:
        """Of the program."""
        return max(LANES, 1 << (self.used - 1).bit_length())

    @property
    def reach(self) -> int:
        """Steps of the longest lane."""
        return max(-(-job.size // lane_count(job.size)) for job in self.jobs)

    def takes(self, job: Job, limit: int, most_tables: int) -> bool:
        """Whether there is room for a job."""
        tables = self.table_count + (0 if job.tables in self._base_of else job.tables.count)
        return (
            not (job.fused or self.jobs[0].fused)
            and self.used + lane_count(job.size) <= limit
            and tables <= most_tables
        )

    def add(self, place: int, job: Job) -> None:
        """Puts a job behind the others."""
        if job.tables not in self._base_of:
            self._base_of[job.tables] = self.table_count
            self.tables.append(job.tables)
            self.table_count += job.tables.count
        self.bases.append(self._base_of[job.tables])
        self.columns.append(slice(self.used, self.used + lane_count(job.size)))
        self.used = self.columns[-1].stop
        self.places.append(place)
        self.jobs.append(job)

    def spread(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Streams' symbols in their columns, 0 elsewhere in the steps that are taken.

        Returns:
          uint8[steps, lanes]
        """
        if parts[0].size == self.steps * self.lanes:
            return parts[0].reshape(self.steps, self.lanes)
        grid = self._grid(0)
        for job, part, columns in zip(self.jobs, parts, self.columns, strict=True):
            for view, values in _in_views(grid, columns, part, job.size):
                view[...] = values
        return grid

    def table_ids(self, idle: int) -> np.ndarray:
        """Which of the call's tables each symbol has, `idle` where there is none.

        Returns:
          uint8[steps, lanes]; anything behind the steps that are taken.
        """
        grid = self._grid(idle)
        for job, base, columns in zip(self.jobs, self.bases, self.columns, strict=True):
            for view, ids in _in_views(grid, columns, job.table_ids, job.size):
                if ids is None:
                    view[...] = base
                    continue
                np.bitwise_and(ids, job.table_mask, out=view)
                if base:
                    view += np.uint8(base)
        return grid

    def _grid(self, idle: int) -> np.ndarray:
        """Room for a value of each symbol, which is `idle` where there is none."""
        grid, reach = buffers.empty((self.steps, self.lanes), np.uint8), self.reach
        if sum(job.size for job in self.jobs) < reach * self.lanes:
            grid[:reach] = idle
        return grid

    @property
    def idle_table(self) -> int:
        """The last of a number of tables that programs have, for places that have no symbol."""
        count = self.table_count
        return (FEW_TABLES if count < FEW_TABLES else max(MANY_TABLES, 1 << count.bit_length())) - 1

    def streams(self) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Streams of the jobs, `Decoding`s, side by side.

        Returns:
          Words, states, pointers and tables, as `rans.decode` takes them; uint32[lanes], where the
          pointers have to be afterwards.
        """
        tables = buffers.empty((self.idle_table + 1, SLOTS), np.uint32)
        np.concatenate([t.decode_rows for t in self.tables], out=tables[: self.table_count])
        tables[-1] = IDLE
        states = np.full(self.lanes, LOWER, np.uint32)
        pointers, ends = np.zeros(self.lanes, np.uint32), np.zeros(self.lanes, np.uint32)
        total = sum(job.words.size for job in self.jobs)
        most = self.steps * self.lanes  # a word a symbol; half is enough for nearly all
        words = buffers.empty((1 << (max(total, most // 2) - 1).bit_length(),), np.uint16)
        np.concatenate([job.words for job in self.jobs], out=words[:total])
        words[total:], begin = 0, 0
        for job, columns in zip(self.jobs, self.columns, strict=True):
            states[columns] = job.states
            ends[columns] = begin + np.cumsum(job.counts)
            pointers[columns] = ends[columns] - job.counts
            begin += job.words.size
        return (words, states, pointers, tables.reshape(-1)), ends


def _program_steps(size: int) -> int:
    """Steps of the program that codes a stream."""
    steps = -(-size // lane_count(size))
    return next(s for s in STEPS if s >= steps)


def _views(grid: np.ndarray, columns: slice, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a stream's symbols lie in [steps, lanes]: whole rows of its columns, and the rest."""
    steps, left = divmod(size, columns.stop - columns.start)
    return grid[:steps, columns], grid[steps : steps + 1, columns].reshape(-1)[:left]


def _in_views(
    grid: np.ndarray, columns: slice, values: np.ndarray | None, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The two views of a stream's place in [steps, lanes], and which of its values are in each."""
    body, tail = _views(grid, columns, size)
    if values is None:
        yield from ((body, None), (tail, None))
    else:
        yield body, values[: body.size].reshape(body.shape)
        yield tail, values[body.size :]


def pick(grid: np.ndarray, columns: slice, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """A stream's symbols, in order.

    Args:
      out: where they are put; None: to a new array.
    """
    if size == grid.size and out is None:
        return grid.reshape(-1)
    values = np.empty(size, grid.dtype) if out is None else out
    for view, part in _in_views(grid, columns, values, size):
        assert part is not None
        part[...] = view
    return values


def calls_of(jobs: Iterable[Job], limit: int, most_tables: int) -> list[Call]:
    """Calls that jobs go into, largest first; if these are few, all of them of one program.

    Args:
      limit: lanes of a call, if one stream does not have more.
      most_tables: of a call.
    """
    jobs = list(jobs)
    fused = [job.fused for job in jobs]
    for job in jobs:
        job.fused = False
    calls = _dealt(jobs, lambda _: LANE, limit, most_tables)
    if len(calls) > FEW:
        for job, whether in zip(jobs, fused, strict=True):
            job.fused = whether
        calls = _dealt(jobs, _program_steps, limit, most_tables)
    return sorted(calls, key=lambda call: -call.steps * call.used)


def _dealt(
    jobs: Sequence[Job], steps_of: Callable[[int], int], limit: int, most_tables: int
) -> list[Call]:
    """The longest streams go first, each into the first call that has room for it, of those that
    were begun last and are not full."""
    calls: list[Call] = []
    begun: dict[int, deque[Call]] = {}
    for place, job in sorted(enumerate(jobs), key=lambda item: -item[1].size):
        steps = steps_of(job.size)
        some = begun.setdefault(steps, deque(maxlen=OPEN_CALLS))
        call = next((call for call in some if call.takes(job, limit, most_tables)), None)
        if call is None:
            call = Call(steps)
            calls.append(call)
            some.append(call)
        call.add(place, job)
        if call.used >= limit or call.table_count >= most_tables:
            some.remove(call)
    return calls
