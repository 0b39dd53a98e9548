"""The entropy coder: exact words, exact inverses, rates near the entropy, no harm from noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jentropy.codecs import lanes, rans
from jentropy.codecs.lanes import FrequencyTable, Stream
from jentropy.errors import CorruptError

GOLDEN_STATE = 2136364136
GOLDEN_WORDS = [
    *(41641, 56491, 42344, 41715, 64686, 21704),
    *(41545, 56494, 21703, 41641, 56320),
]


def coded_bits(stream: Stream) -> int:
    return 16 * stream.words.size + 8 * rans.LANE_BYTES * stream.states.size


def table_of(run: np.ndarray) -> FrequencyTable:
    return FrequencyTable.of_counts(np.bincount(run, minlength=256))


def entropy_of(run: np.ndarray) -> float:
    p = np.bincount(run, minlength=256) / run.size
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**50), min_size=1, max_size=256).filter(any))
def test_frequencies_sum_and_cover(counts):
    counts = np.array(counts + [0] * (256 - len(counts)), dtype=np.int64)
    frequency = rans.normalize(counts)
    assert frequency.sum() == rans.SLOTS
    assert ((frequency > 0) == (counts > 0)).all()


def test_tables_are_those_of_the_format():
    counts = np.zeros(256, np.int64)
    counts[[7, 8, 200]] = [1, 2, 1]
    frequency = rans.normalize(counts)
    assert frequency[[7, 8, 200]].tolist() == [1024, 2048, 1024]
    table = rans.decode_table(frequency)
    assert table[0] == (7 << 24 | 1023 << 12 | 0)
    assert table[1024] == (8 << 24 | 2047 << 12 | 0)
    assert table[4095] == (200 << 24 | 1023 << 12 | 1023)
    assert rans.encode_table(frequency)[[7, 8, 200]].tolist() == [
        1024 << 16,
        2048 << 16 | 1024,
        1024 << 16 | 3072,
    ]


def test_golden_words():
    """The words are part of the file format: they must not change."""
    run = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3] * 4, np.uint8)
    (stream,) = lanes.encode([run], [table_of(run)])
    assert stream.counts.tolist() == [11]
    assert stream.states.tolist() == [GOLDEN_STATE]
    assert stream.words.tolist() == GOLDEN_WORDS


def scalar_encode(run: np.ndarray, table: FrequencyTable) -> tuple[int, list[int]]:
    """The coder of the module docstring, a symbol at a time, in Python integers."""
    frequency = table.dense()
    starts = np.cumsum(frequency) - frequency
    state, words = 1 << 16, []
    for symbol in reversed(run.tolist()):
        f, start = int(frequency[symbol]), int(starts[symbol])
        if state >= f << 20:
            words.append(state & 0xFFFF)
            state >>= 16
        state = ((state // f) << 12) + state % f + start
    return state, words[::-1]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 256), st.integers(0, 2**32 - 1))
def test_lanes_match_a_scalar_coder(size, symbols, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random(symbols) ** 6 + 1e-9
    run = rng.choice(symbols, size, p=weights / weights.sum()).astype(np.uint8)
    table = table_of(run)
    (stream,) = lanes.encode([run], [table])
    assert (int(stream.states[0]), stream.words.tolist()) == scalar_encode(run, table)
    np.testing.assert_array_equal(lanes.decode([stream], [size], [table])[0], run)


SIZES = [1, 255, 256, 257, 4095, 4096, 4097, 2 * 4096, 100_000, 2048 * 4096 + 5]


def test_runs_of_all_sizes_code_together():
    rng = np.random.default_rng(0)
    runs = [
        np.clip(rng.normal(120, 1 + i, n), 0, 255).astype(np.uint8) for i, n in enumerate(SIZES)
    ]
    tables = [table_of(run) for run in runs]
    streams = lanes.encode(runs, tables)
    for run, out in zip(runs, lanes.decode(streams, SIZES, tables), strict=True):
        np.testing.assert_array_equal(out, run)
    # A run's stream does not depend on what it was coded with.
    alone = lanes.encode([runs[8]], [tables[8]])[0]
    np.testing.assert_array_equal(alone.words, streams[8].words)
    np.testing.assert_array_equal(alone.states, streams[8].states)


@pytest.mark.parametrize(
    ("deviation", "bound"),
    [(0.3, 0.015), (1.0, 0.015), (4.0, 0.015), (20.0, 0.03)],  # rare symbols cost 1/4096 each
)
def test_rate_is_near_the_entropy(deviation, bound):
    run = np.random.default_rng(1).normal(128, deviation, 1 << 20).clip(0, 255).astype(np.uint8)
    (stream,) = lanes.encode([run], [table_of(run)])
    assert 0 < coded_bits(stream) / run.size - entropy_of(run) < bound


def test_one_symbol_costs_only_its_states():
    run = np.full(50_000, 77, np.uint8)
    (stream,) = lanes.encode([run], [table_of(run)])
    assert stream.words.size == 0
    assert (stream.states == rans.LOWER).all()
    np.testing.assert_array_equal(lanes.decode([stream], [run.size], [table_of(run)])[0], run)


@pytest.mark.parametrize("field", ["words", "states", "counts"])
def test_noise_is_noticed(field):
    rng = np.random.default_rng(2)
    run = rng.normal(128, 3, 20_000).clip(0, 255).astype(np.uint8)
    table = table_of(run)
    (stream,) = lanes.encode([run], [table])
    parts = {key: getattr(stream, key).copy() for key in ("states", "counts", "words")}
    if field == "counts":  # move a word from one lane to the next
        parts[field][0] += 1
        parts[field][1] -= 1
    else:
        parts[field][parts[field].size // 2] ^= 1 << 9
    with pytest.raises(CorruptError, match="coded symbols"):
        lanes.decode([Stream(**parts)], [run.size], [table])


def test_random_streams_never_read_outside():
    rng = np.random.default_rng(3)
    table = FrequencyTable.of_counts(rng.integers(1, 100, 256))
    for _ in range(20):
        counts = rng.integers(0, 3, 3).astype(np.uint16)
        stream = Stream(
            rng.integers(0, 2**32, 3, dtype=np.uint32),
            counts,
            rng.integers(0, 2**16, int(counts.sum())).astype(np.uint16),
        )
        with pytest.raises(CorruptError):
            lanes.decode([stream], [10_000], [table])


@pytest.mark.parametrize(
    ("first", "frequencies"),
    [(0, ()), (0, (4095,)), (255, (2048, 2048)), (-1, (4096,)), (0, (4097, -1)), (0, (0,) * 257)],
)
def test_a_table_that_does_not_sum_is_refused(first, frequencies):
    with pytest.raises(CorruptError, match="frequency table"):
        FrequencyTable(first, frequencies)
