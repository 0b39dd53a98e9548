"""Codec `rans`: byte planes, each entropy coded with one table per tensor or stored.

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
from jentropy.formats import Format

from . import lanes, planes, rans
from .coding import Coding
from .lanes import FrequencyTable, Stream

NAME = "rans"
MIN_GAIN = 0.01  # a plane that shrinks by less is stored
_MERGE_SIZES = tuple(1 << bits for bits in range(10, 31, 2))  # chunk sizes of compiled merges
# Cost of a symbol of frequency f in 1/65536 bit; integers, so that every machine decides alike.
_COST = np.array([0, *(round(65536 * math.log2(rans.SLOTS / f)) for f in range(1, rans.SLOTS + 1))])


def choose(number_format: Format, slices: tuple[np.ndarray, ...], weights: int) -> Coding | None:
    """The coding of a tensor, or None if no plane is worth it.

    Args:
      slices: histograms of the codes, as `entropy.Counts` holds them.
    """
    if weights == 0 or number_format.bias is None:
        return None
    tables: list[FrequencyTable | None] = []
    for counts in planes.plane_counts(number_format, slices):
        table = FrequencyTable.of_counts(counts)
        bits = sum(int(c) * int(k) for c, k in zip(counts, _COST[table.dense()], strict=True))
        side = lanes.lane_count(weights) * rans.LANE_BYTES + 3 * len(table.frequencies)
        coded_bytes = bits / (65536 * 8) + side
        tables.append(table if coded_bytes < (1 - MIN_GAIN) * weights else None)
    return Coding(codec=NAME, tables=tuple(tables)) if any(tables) else None


def encode(
    chunks: Sequence[np.ndarray], formats: Sequence[Format], codings: Sequence[Coding]
) -> list[np.ndarray]:
    """Payloads of chunks of codes, uint8 each."""
    runs: list[np.ndarray] = []
    tables: list[FrequencyTable] = []
    stored: list[list[np.ndarray]] = []
    for chunk, number_format, coding in zip(chunks, formats, codings, strict=True):
        stored.append([])
        padded = _pad(np.ascontiguousarray(chunk).reshape(-1))
        for index, table in enumerate(coding.tables):
            symbols = planes.extract(padded, number_format=number_format, index=index)
            symbols = np.asarray(symbols)[: chunk.size]
            if table is None:
                stored[-1].append(symbols)
            else:
                runs.append(symbols)
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
    formats: Sequence[Format],
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
    for size, number_format, coding, rest in zip(sizes, formats, codings, stored, strict=True):
        kept = iter(rest)
        rows = np.zeros((len(coding.tables), _padded_size(size)), np.uint8)
        for row, table in zip(rows, coding.tables, strict=True):
            row[:size] = next(kept if table is None else decoded)
        chunks.append(np.asarray(planes.merge(rows, number_format=number_format))[:size])
    return chunks


def size_bound(size: int, number_format: Format) -> int:
    """Largest payload of a chunk, bytes: a lane emits at most a word a symbol."""
    count = len(planes.planes_of(number_format))
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


def _padded_size(size: int) -> int:
    return next((s for s in _MERGE_SIZES if s >= size), size)


def _pad(codes: np.ndarray) -> np.ndarray:
    return np.pad(codes, (0, _padded_size(codes.size) - codes.size))
