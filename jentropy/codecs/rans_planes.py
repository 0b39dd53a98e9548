"""Codec `rans`: planes of the codes, each entropy coded with one table per tensor or stored.

A chunk of n weights, with L = ceil(n / LANE) lanes, is little-endian bytes:

    states   uint32[L]   of each coded plane in turn
    counts   uint16[L]   words of each lane, of each coded plane in turn
    words    uint16[..]  the lanes' words one after another, of each coded plane in turn
    stored   uint8[n]    of each plane without a table in turn
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jentropy.errors import CorruptError
from jentropy.formats import RAW, ElementFormat

from . import lanes, planes, rans
from .coding import Coding
from .lanes import FrequencyTable, Stream

NAME = "rans"
MIN_GAIN = 0.01  # a plane that shrinks by less is stored
# Cost of a symbol of frequency f in 1/65536 bit; integers, so that every machine decides alike.
_COST = np.array([0, *(round(65536 * math.log2(rans.SLOTS / f)) for f in range(1, rans.SLOTS + 1))])


def choose(
    element: ElementFormat,
    slices: Sequence[np.ndarray],
    weights: int,
    nibbles: bool | None = None,
) -> Coding | None:
    """The smallest coding of a tensor, or None if no plane is worth it.

    Args:
      slices: histograms of the codes, as `entropy.Counts` holds them.
      nibbles: of RAW, whether its symbols are half bytes; None: whichever is smaller.
    """
    if weights == 0:
        return None
    ways: tuple[bool, ...] = (False,)
    if element.name == RAW:
        ways = (False, True) if nibbles is None else (nibbles,)
    choices = [_choose_tables(element, slices, weights, nibbles) for nibbles in ways]
    _, best = min(choices, key=lambda choice: choice[0])
    return best if any(best.tables) else None


def _choose_tables(
    element: ElementFormat, slices: Sequence[np.ndarray], weights: int, nibbles: bool
) -> tuple[float, Coding]:
    """Bytes that a tensor will take, and how."""
    total = 0.0
    tables: list[FrequencyTable | None] = []
    for counts in planes.plane_counts(element, slices, nibbles):
        table = FrequencyTable.of_counts(counts)
        bits = int(counts @ _COST[table.dense()])  # below 2^63 for 2^43 weights
        side = lanes.lane_count(weights) * rans.LANE_BYTES + 3 * len(table.frequencies)
        coded_bytes = bits / (65536 * 8) + side
        stored_bytes = weights / 2 if nibbles else weights
        is_worth_it = coded_bytes < (1 - MIN_GAIN) * stored_bytes
        tables.append(table if is_worth_it else None)
        total += coded_bytes if is_worth_it else weights
    return total, Coding(codec=NAME, tables=tuple(tables), nibbles=nibbles)


def encode(
    chunks: Sequence[np.ndarray], formats: Sequence[ElementFormat], codings: Sequence[Coding]
) -> list[np.ndarray]:
    """Payloads of chunks of codes, uint8 each."""
    runs: list[np.ndarray] = []
    tables: list[FrequencyTable] = []
    stored: list[list[np.ndarray]] = []
    for chunk, element, coding in zip(chunks, formats, codings, strict=True):
        symbols = planes.split(np.ascontiguousarray(chunk).reshape(-1), element, coding.nibbles)
        stored.append([])
        for plane, table in zip(symbols, coding.tables, strict=True):
            if table is None:
                stored[-1].append(plane)
            else:
                runs.append(plane)
                tables.append(table)
    streams = iter(lanes.encode(runs, tables))
    payloads = []
    for coding, rest in zip(codings, stored, strict=True):
        own = [next(streams) for table in coding.tables if table is not None]
        sections = [
            *(s.states.astype("<u4") for s in own),
            *(s.counts.astype("<u2") for s in own),
            *(s.words.astype("<u2") for s in own),
            *rest,
        ]
        payloads.append(np.concatenate([section.view(np.uint8) for section in sections]))
    return payloads


def decode(
    payloads: Sequence[np.ndarray],
    sizes: Sequence[int],
    formats: Sequence[ElementFormat],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Codes of each payload, `sizes` of them, in the formats' code dtypes.

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.
    """
    streams: list[Stream] = []
    stream_sizes: list[int] = []
    tables: list[FrequencyTable] = []
    stored: list[list[np.ndarray]] = []
    for payload, size, coding in zip(payloads, sizes, codings, strict=True):
        own, rest = _parse(payload, size, coding)
        streams += own
        stream_sizes += [size] * len(own)
        tables += [table for table in coding.tables if table is not None]
        stored.append(rest)
    decoded = iter(lanes.decode(streams, stream_sizes, tables))
    chunks = []
    for element, coding, rest in zip(formats, codings, stored, strict=True):
        kept = iter(rest)
        symbols = [next(kept if table is None else decoded) for table in coding.tables]
        chunks.append(planes.merge(symbols, element, coding.nibbles))
    return chunks


def size_bound(size: int, element: ElementFormat) -> int:
    """Largest payload of a chunk, bytes: a lane emits at most a word a symbol."""
    count = len(planes.planes_of(element, nibbles=element.name == RAW))
    return count * (lanes.lane_count(size) * rans.LANE_BYTES + 2 * size)


def _parse(payload: np.ndarray, size: int, coding: Coding) -> tuple[list[Stream], list[np.ndarray]]:
    coded = sum(table is not None for table in coding.tables)
    stored = len(coding.tables) - coded
    lane_count = lanes.lane_count(size)
    head = coded * lane_count * rans.LANE_BYTES
    if payload.size < head + stored * size:
        raise CorruptError(
            "coded chunk", expected=f"at least {head + stored * size} bytes", found=payload.size
        )
    split = 4 * coded * lane_count
    states = payload[:split].copy().view("<u4").reshape(coded, lane_count)
    counts = payload[split:head].copy().view("<u2").reshape(coded, lane_count)
    word_counts = counts.sum(axis=1, dtype=np.int64)
    expected = head + 2 * int(word_counts.sum()) + stored * size
    if payload.size != expected:
        raise CorruptError("coded chunk", expected=f"{expected} bytes", found=payload.size)
    words = payload[head : expected - stored * size].copy().view("<u2")
    ends = np.cumsum(word_counts)
    streams = [
        Stream(s, c, words[end - n : end])
        for s, c, n, end in zip(states, counts, word_counts, ends, strict=True)
    ]
    tail = payload[expected - stored * size :].reshape(stored, size)
    return streams, list(tail)
