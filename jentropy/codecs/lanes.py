"""Symbols to lane streams and back, the lanes of many tensors in one call.

A run of n symbols takes ceil(n / LANE) lanes, every one full but the last. Lanes are gathered into
batches of a few fixed shapes, so that a checkpoint of any tensors compiles a handful of programs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from jentropy.errors import CorruptError

from . import rans

_T = TypeVar("_T")

BATCH_LANES = (64, 256, 1024)  # lane counts of compiled programs; more leave a core's cache
BATCH_STEPS = (256, rans.LANE)  # symbols a lane of compiled programs
BATCH_TABLES = (1, 16, 128, BATCH_LANES[-1])  # table counts of compiled programs


@dataclass(frozen=True, slots=True)
class FrequencyTable:
    """Frequencies of symbols first, first + 1, ...; they sum to rans.SLOTS, ends are not 0."""

    first: int
    frequencies: tuple[int, ...]

    def __post_init__(self) -> None:
        top = self.first + len(self.frequencies)
        sound = (
            self.first >= 0
            and top <= 256
            and all(0 <= f <= rans.SLOTS for f in self.frequencies)
            and sum(self.frequencies) == rans.SLOTS
        )
        if not sound:
            raise CorruptError(
                "frequency table",
                expected=f"at most 256 frequencies that sum to {rans.SLOTS}",
                found=f"{len(self.frequencies)} from symbol {self.first}, "
                f"sum {sum(self.frequencies)}",
            )

    @classmethod
    def of_counts(cls, counts: np.ndarray) -> FrequencyTable:
        """The table for symbols that occur `counts` times. int64[256], not all zero."""
        frequencies = rans.normalize(counts)
        used = np.flatnonzero(frequencies)
        first, last = int(used[0]), int(used[-1])
        return cls(first, tuple(int(f) for f in frequencies[first : last + 1]))

    def dense(self) -> np.ndarray:
        """int64[256]."""
        frequencies = np.zeros(256, np.int64)
        frequencies[self.first : self.first + len(self.frequencies)] = self.frequencies
        return frequencies


@dataclass(frozen=True, slots=True)
class Stream:
    """Coded symbols: one state and one word count per lane, the lanes' words one after another."""

    states: np.ndarray  # uint32[lanes]
    counts: np.ndarray  # uint16[lanes], words of each lane
    words: np.ndarray  # uint16[sum of counts]


def lane_count(symbols: int) -> int:
    """Lanes that a run of symbols takes."""
    return -(-symbols // rans.LANE)


@lru_cache(maxsize=1024)
def _encode_table(table: FrequencyTable) -> np.ndarray:
    return rans.encode_table(table.dense())


@lru_cache(maxsize=1024)
def _decode_table(table: FrequencyTable) -> np.ndarray:
    return rans.decode_table(table.dense())


@dataclass(frozen=True, slots=True)
class _Part:
    """Lanes of one run that lie in one batch."""

    run: int
    lane: int  # first lane, within the run
    lanes: int
    at: int  # first lane, within the batch

    @property
    def in_run(self) -> slice:
        """Its lanes among those of the run."""
        return slice(self.lane, self.lane + self.lanes)

    @property
    def in_batch(self) -> slice:
        """Its lanes among those of the batch."""
        return slice(self.at, self.at + self.lanes)


@dataclass(frozen=True, slots=True)
class _Batch:
    parts: list[_Part]
    steps: int
    lanes: int  # with padding
    counts: np.ndarray | None  # symbols of each lane; None if all are full
    tables: list[FrequencyTable]
    table_ids: np.ndarray

    def stack_tables(self, make: Callable[[FrequencyTable], np.ndarray]) -> np.ndarray:
        size = next(s for s in BATCH_TABLES if s >= len(self.tables))
        rows = [make(t) for t in self.tables]
        return np.stack(rows + rows[:1] * (size - len(rows)))


def _batches(sizes: Sequence[int], tables: Sequence[FrequencyTable]) -> Iterator[_Batch]:
    """Gathers the lanes of runs of `sizes` symbols. Short runs and long ones apart."""
    limit = BATCH_LANES[-1]
    for low, steps in zip((0, *BATCH_STEPS), BATCH_STEPS, strict=False):
        parts: list[_Part] = []
        used = 0
        for run, size in enumerate(sizes):
            if not low < min(size, BATCH_STEPS[-1]) <= steps:
                continue
            lane, lanes = 0, lane_count(size)
            while lane < lanes:
                take = min(lanes - lane, limit - used)
                parts.append(_Part(run, lane, take, used))
                lane, used = lane + take, used + take
                if used == limit:
                    yield _batch(parts, used, steps, sizes, tables)
                    parts, used = [], 0
        if parts:
            yield _batch(parts, used, steps, sizes, tables)


def _batch(
    parts: list[_Part],
    used: int,
    steps: int,
    sizes: Sequence[int],
    tables: Sequence[FrequencyTable],
) -> _Batch:
    lanes = next(n for n in BATCH_LANES if n >= used)
    counts = np.zeros(lanes, np.int32)
    ids = np.zeros(lanes, np.int32)
    distinct: dict[FrequencyTable, int] = {}
    for part in parts:
        run = slice(part.at, part.at + part.lanes)
        ids[run] = distinct.setdefault(tables[part.run], len(distinct))
        left = sizes[part.run] - rans.LANE * (part.lane + np.arange(part.lanes))
        counts[run] = np.minimum(left, rans.LANE)
    full = bool((counts == steps).all())
    return _Batch(parts, steps, lanes, None if full else counts, list(distinct), ids)


def _lane_view(run: np.ndarray, part: _Part, steps: int) -> np.ndarray:
    start = part.lane * rans.LANE
    return run[start : start + (part.lanes - 1) * rans.LANE + steps]


def _in_parallel(run: Callable[[_Batch], _T], batches: Iterable[_Batch]) -> list[_T]:
    """Results in order. A program of a few thousand lanes keeps one core busy, not more."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, batches))


def encode(runs: Sequence[np.ndarray], tables: Sequence[FrequencyTable]) -> list[Stream]:
    """Codes each run of symbols with its table.

    Args:
      runs: uint8[n] each, n > 0; every symbol has a frequency in the run's table.
    """
    batches = list(_batches([run.size for run in runs], tables))
    lanes = [lane_count(run.size) for run in runs]
    states = [np.empty(n, np.uint32) for n in lanes]
    counts = [np.empty(n, np.uint16) for n in lanes]
    words: list[list[np.ndarray]] = [[] for _ in runs]
    coded = _in_parallel(lambda batch: _encode_batch(batch, runs), batches)
    for batch, (final, per_lane, stream) in zip(batches, coded, strict=True):
        ends = np.cumsum(per_lane)
        for part in batch.parts:
            here, there = part.in_batch, part.in_run
            states[part.run][there], counts[part.run][there] = final[here], per_lane[here]
            begin = ends[here.start] - per_lane[here.start]
            words[part.run].append(stream[begin : ends[here.stop - 1]])
    return [Stream(s, c, np.concatenate(w)) for s, c, w in zip(states, counts, words, strict=True)]


def _encode_batch(
    batch: _Batch, runs: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Final states and word counts of the lanes, and all their words."""
    symbols = np.zeros((batch.lanes, batch.steps), np.uint8)
    for part in batch.parts:
        source = _lane_view(runs[part.run], part, batch.steps)
        symbols[part.in_batch].reshape(-1)[: source.size] = source
    final, coded, emitted = rans.encode(
        symbols, batch.counts, batch.stack_tables(_encode_table), batch.table_ids
    )
    mask = np.asarray(emitted)
    return np.asarray(final), mask.sum(axis=1), np.asarray(coded)[mask]


def decode(
    streams: Sequence[Stream], sizes: Sequence[int], tables: Sequence[FrequencyTable]
) -> list[np.ndarray]:
    """Symbols of each stream, uint8[size].

    Raises:
      CorruptError: a lane does not end where an encoder begins.
    """
    runs = [np.empty(size, np.uint8) for size in sizes]
    ends = [np.cumsum(stream.counts, dtype=np.int64) for stream in streams]
    _in_parallel(
        lambda batch: _decode_batch(batch, streams, ends, runs), list(_batches(sizes, tables))
    )
    return runs


def _decode_batch(
    batch: _Batch,
    streams: Sequence[Stream],
    ends: Sequence[np.ndarray],
    runs: Sequence[np.ndarray],
) -> None:
    """Fills in the batch's parts of the runs; `ends`: where the lanes' words end in the streams."""
    states = np.full(batch.lanes, rans.LOWER, np.uint32)
    offsets, expected = np.zeros(batch.lanes, np.int32), np.zeros(batch.lanes, np.int32)
    pieces, filled = [], 0
    for part in batch.parts:
        stream, run_ends = streams[part.run], ends[part.run]
        here, there = part.in_batch, part.in_run
        states[here] = stream.states[there]
        begin = run_ends[there.start] - int(stream.counts[there.start])
        pieces.append(stream.words[begin : run_ends[there.stop - 1]])
        expected[here] = filled + run_ends[there] - begin
        offsets[here] = expected[here] - stream.counts[there]
        filled += pieces[-1].size
    padded = np.zeros(1 << max(12, filled.bit_length()), np.uint16)  # a few sizes, never empty
    np.concatenate(pieces, out=padded[:filled])
    symbols, final, reached = rans.decode(
        padded,
        offsets,
        states,
        batch.counts,
        batch.stack_tables(_decode_table),
        batch.table_ids,
        steps=batch.steps,
    )
    sound = (np.asarray(final) == rans.LOWER) & (np.asarray(reached) == expected)
    used = batch.parts[-1].in_batch.stop
    if not sound[:used].all():
        raise CorruptError(
            "coded symbols",
            expected="every lane to end in its initial state",
            found=f"{int((~sound[:used]).sum())} of {used} lanes elsewhere",
        )
    flat = np.asarray(symbols)
    for part in batch.parts:
        target = _lane_view(runs[part.run], part, batch.steps)
        target[:] = flat[part.in_batch].reshape(-1)[: target.size]
