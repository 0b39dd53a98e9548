"""Streams of symbols to lanes and back, the lanes of many streams in one call.

A stream is a *job* of its codec's, an `Encoding` or a `Decoding`. Jobs are dealt out to calls,
which run in all threads; the thread that runs a call takes its jobs through their steps: `prepare`,
the coder (or, of a job that is `fused`, its own `run_fused`), `finish`. Then they are let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jentropy.errors import CorruptError

from . import bits, rans, threads
from .calls import DEVICE_LANES, LANES, MANY_TABLES, Call, Job, calls_of, lane_count, pick
from .rans import LOWER, SLOTS

IDLE = 255  # table of an encoder's lanes that have no symbol; all others may be used
BYTES = 255  # a count that spreads less takes a byte
NO_COUNT = 0xFFFF  # in the stead of the least count: counts follow in two bytes each


class Encoding(Job):
    """A stream to be coded.

    Attributes:
      symbols: uint8[size], as `Tables.shown` has them.
      carries: uint16[lanes], low bits of each lane's initial state; None: 0.
    """

    symbols: np.ndarray
    carries: np.ndarray | None = None

    def finish(self, states: np.ndarray, counts: np.ndarray, words: np.ndarray) -> Any:
        """The result, of lanes' states, how many words each has, and their words in order.

        Args:
          states: uint32[lanes].
          counts: int64[lanes].
          words: uint16[sum of counts].
        """
        raise NotImplementedError


class Decoding(Job):
    """A stream to be decoded.

    Attributes:
      states, counts, words: what `Encoding.finish` was given.
      room: uint8[size], where its symbols are put; None: in a new array.
    """

    states: np.ndarray
    counts: np.ndarray
    words: np.ndarray
    room: np.ndarray | None = None

    def finish(self, symbols: np.ndarray, carries: np.ndarray) -> Any:
        """The result, of symbols (as `Tables.shown` has them) and carries, as of `Encoding`."""
        raise NotImplementedError

    @classmethod
    def finish_all(
        cls, jobs: Sequence[Any], parts: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[Any]:
        """The same of all jobs of a call, which are of this class."""
        return [job.finish(*part) for job, part in zip(jobs, parts, strict=True)]


# What is stored of a stream.


def sections(states: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """A stream as it is stored, but for the words: states, least count, what each has more."""
    least = int(counts.min())
    narrow = int(counts.max()) - least < BYTES and least < NO_COUNT
    return [
        states.astype("<u4"),
        np.array([least if narrow else NO_COUNT], "<u2"),
        (counts - least).astype(np.uint8) if narrow else counts.astype("<u2"),
    ]


def read_sections(reader: bits.Reader, size: int) -> tuple[np.ndarray, np.ndarray]:
    """States and counts that `sections` stored for a stream of `size` symbols."""
    lanes = lane_count(size)
    states, least = reader.array("<u4", lanes), reader.integer("<u2")
    if least == NO_COUNT:
        return states, reader.array("<u2", lanes).astype(np.int64)
    return states, reader.array("u1", lanes).astype(np.int64) + least


def _run(jobs: Iterable[Job], run: Callable[[Call], list[Any]], most_tables: int) -> list[Any]:
    """Results of all jobs, in order."""
    limit = LANES if jax.default_backend() == "cpu" else DEVICE_LANES
    calls = calls_of(jobs, limit, most_tables)
    results: dict[int, Any] = {}

    def run_and_let_go(call: Call) -> None:
        results.update(zip(call.places, run(call), strict=True))
        call.jobs.clear()

    threads.each(run_and_let_go, calls)
    return [results[i] for i in range(len(results))]


def encode(jobs: Iterable[Encoding]) -> list[Any]:
    """Codes streams; each one's result, in order."""
    return _run(jobs, _encode_call, IDLE)


def _encode_call(call: Call) -> list[Any]:
    type(call.jobs[0]).prepare_all(call.jobs)
    coded = call.jobs[0].run_fused(call) if call.jobs[0].fused else _encode_symbols(call)
    states, words, emitted = map(np.asarray, coded)
    words, emitted = words[:, : call.reach], emitted[:, : call.reach]
    return [
        job.finish(states[columns], *_without_gaps(words[columns], emitted[columns]))
        for job, columns in zip(call.jobs, call.columns, strict=True)
    ]


def _encode_symbols(call: Call) -> Sequence[jax.Array]:
    rows = np.zeros((256, 256), np.uint32)
    rows[-1] = SLOTS << 16
    initial = np.full(call.lanes, LOWER, np.uint32)
    for job, columns, base in zip(call.jobs, call.columns, call.bases, strict=True):
        rows[base : base + job.tables.count] = job.tables.encode_rows
        if job.carries is not None:
            initial[columns] |= job.carries
    symbols, reach = call.spread([job.symbols for job in call.jobs]), np.int32(call.reach)
    return rans.encode(symbols, call.table_ids(IDLE), initial, rows.reshape(-1), reach)


def _without_gaps(words: np.ndarray, emitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and words of some lanes, without the words that are not emitted."""
    kept = np.flatnonzero(emitted.reshape(-1))
    lanes, steps = emitted.shape
    ends = np.searchsorted(kept, np.arange(1, lanes + 1) * steps)
    return np.diff(ends, prepend=0), words.reshape(-1).take(kept)


def decode(jobs: Iterable[Decoding]) -> list[Any]:
    """Decodes streams; each one's result, in order.

    Raises:
      CorruptError: a lane that does not end where an encoder begins.
    """
    return _run(jobs, _decode_call, MANY_TABLES - 1)


def _decode_call(call: Call) -> list[Any]:
    type(call.jobs[0]).prepare_all(call.jobs)
    streams, ends = call.streams()
    if call.jobs[0].fused:
        decoded = call.jobs[0].run_fused(call, streams)
    else:
        table_ids = call.table_ids(call.idle_table)
        decoded = rans.decode(*streams, table_ids, np.int32(call.reach))
    symbols, final, reached = map(np.asarray, decoded)
    expect_sound(bool(((final >> 16 == 1) & (reached == ends)).all()))
    parts = [
        (pick(symbols, columns, job.size, job.room), final[columns].astype(np.uint16))
        for job, columns in zip(call.jobs, call.columns, strict=True)
    ]
    return type(call.jobs[0]).finish_all(call.jobs, parts)


def expect_sound(sound: bool) -> None:
    """Raises CorruptError unless every lane ended where an encoder begins, its words used up."""
    if not sound:
        raise CorruptError(
            "coded symbols",
            expected="every lane to end in an initial state",
            found="lanes elsewhere",
        )


def expect_no_carries(carries: np.ndarray) -> None:
    """Raises CorruptError unless no lane's initial state carries anything."""
    if carries.any():
        raise CorruptError("coded symbols", expected="lanes that begin at 2^16", found="others")


def expect_escapes(marked: int, stored: int) -> None:
    """Raises CorruptError unless a chunk has as many escapes as symbols that say so."""
    if marked != stored:
        raise CorruptError("escapes of a chunk", expected=marked, found=stored)
