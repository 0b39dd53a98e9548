"""The entropy coder: exact words, exact inverses, rates near the entropy, no harm from noise."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jentropy import jax_internals
from jentropy.codecs import bits, calls, lanes, rans, tables
from jentropy.codecs.tables import Tables
from jentropy.errors import CorruptError


def table_of(*runs: np.ndarray) -> Tables:
    """A table for each run, of its own symbols."""
    counts = np.stack([np.bincount(run, minlength=256) for run in runs])
    frequencies = np.stack([tables.normalize(row) for row in counts])
    return Tables(frequencies, np.arange(256))


class Stream(NamedTuple):
    """A coded stream."""

    states: np.ndarray
    counts: np.ndarray
    words: np.ndarray


class Encoding(lanes.Encoding):
    """Gives the coded stream."""

    def __init__(self, symbols, own, table_ids=None, carries=None):
        self.size, self.tables = symbols.size, own
        self.symbols, self.table_ids, self.carries = symbols, table_ids, carries

    def finish(self, *stream) -> Stream:
        return Stream(*stream)


class Decoding(lanes.Decoding):
    """Gives symbols and carries."""

    def __init__(self, stream, size, own, table_ids=None):
        self.size, self.tables, self.table_ids = size, own, table_ids
        self.states, self.counts, self.words = stream

    def finish(self, symbols, carries):
        return symbols, carries


def entropy_of(run: np.ndarray) -> float:
    p = np.bincount(run, minlength=256) / run.size
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**42), min_size=1, max_size=256).filter(any))
def test_frequencies_sum_and_cover(counts):
    counts = np.array(counts + [0] * (256 - len(counts)), dtype=np.int64)
    frequency = tables.normalize(counts)
    assert frequency.sum() == rans.SLOTS
    assert ((frequency > 0) == (counts > 0)).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_levels_come_back(contexts, symbols, seed):
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, tables.LEVELS + 1, (contexts, symbols))
    levels[:, 0] += levels[:, 0] == 0
    data = tables.write_levels(levels)
    reader = bits.Reader(data, "test")
    assert (tables.read_levels(reader, contexts, symbols) == levels).all()
    assert reader.left == 0
    sizes = [len(tables.write_levels(row[None])) for row in levels]
    assert tables.written_bytes(levels, np.full(contexts, symbols)).tolist() == sizes


def test_levels_are_eighths_of_an_octave():
    assert tables.WEIGHTS[0] == 0
    assert (tables.WEIGHTS[1::8] == 2 ** np.arange(20, 33)).all()
    ratio = tables.WEIGHTS[2:] / tables.WEIGHTS[1:-1]
    np.testing.assert_allclose(ratio, 2**0.125, rtol=1e-6)


def test_tables_are_those_of_the_format():
    own = table_of(np.array([7, 8, 8, 200]))
    assert own.frequencies[0, [7, 8, 200]].tolist() == [1024, 2048, 1024]
    (table,) = own.decode_rows
    assert table[0] == (7 << 24 | 1023 << 12 | 0)
    assert table[1024] == (8 << 24 | 2047 << 12 | 0)
    assert table[4095] == (200 << 24 | 1023 << 12 | 1023)
    assert own.encode_rows[0, [7, 8, 200]].tolist() == [
        1024 << 16,
        2048 << 16 | 1024,
        1024 << 16 | 3072,
    ]


def test_golden_words():
    run = np.random.default_rng(0).binomial(15, 0.4, 64).astype(np.uint8)
    own = table_of(run)
    (stream,) = lanes.encode([Encoding(run, own)])
    # The same, by the formula of FORMAT.md in plain integers.
    f, starts = own.frequencies[0], own.starts[0]
    state, words = 1 << 16, []
    for symbol in run[::-1].tolist():
        if state >= int(f[symbol]) << 20:
            words.insert(0, state & 0xFFFF)
            state >>= 16
        quotient, remainder = divmod(state, int(f[symbol]))
        state = (quotient << 12) + remainder + int(starts[symbol])
    assert stream.states.tolist() == [state]
    assert stream.words.tolist() == words


@pytest.mark.skipif(
    jax_internals.one_kernel_mark() is None, reason=f"jax {jax.__version__} has not been tried"
)
@pytest.mark.parametrize("width", [32, 96, 200])
@pytest.mark.parametrize("count", [rans.FEW, 32])
def test_one_kernel_and_one_for_each_fusion_are_the_same_coder(count, width, monkeypatch):
    rng = np.random.default_rng(count)
    run = rng.binomial(20, 0.3, (128, width)).astype(np.uint8)
    numbers = rng.integers(0, 3, run.shape).astype(np.uint8)
    own = table_of(*(run[numbers == i] for i in range(3)))
    rows = np.zeros((256, 256), np.uint32)
    rows[:3] = own.encode_rows
    initial = (rans.LOWER + rng.integers(0, rans.LOWER, width)).astype(np.uint32)
    decode_rows = np.resize(own.decode_rows, (count, rans.SLOTS)).reshape(-1)
    coding = run, numbers, initial, rows.reshape(-1)
    states, words, emitted = map(np.asarray, rans.encode(*coding))
    stream, counts = np.zeros(1 << 15, np.uint16), emitted.sum(axis=1)
    stream[: counts.sum()] = words[emitted]
    pointers = (np.cumsum(counts) - counts).astype(np.uint32)
    decoding = stream, states, pointers, decode_rows, numbers
    found = [*rans.encode(*coding), *rans.decode(*decoding)]
    assert (found[3] == run).all()
    assert (found[4] == initial).all()
    for coder, taken in ((rans.encode, coding), (rans.decode, decoding)):
        marked = re.findall(r"call @.*xla_cpu_small_call", coder.lower(*taken).as_text())
        assert len(marked) == 1, "the loop, and nothing that is called in it"
    monkeypatch.setattr(jax_internals, "one_kernel_mark", lambda: None)
    plain = [  # functions of their own, which have not been traced
        jax.jit(lambda *given, coder=coder.__wrapped__: coder(*given))
        for coder in (rans.encode, rans.decode)
    ]
    assert "small_call" not in plain[1].lower(*decoding).as_text()
    for one, other in zip(found, [*plain[0](*coding), *plain[1](*decoding)], strict=True):
        assert (one == other).all()


SIZES = [1, 2, 63, 512, 8191, 8192, 8193, 100_000, 1 << 20]


@pytest.mark.parametrize("size", SIZES)
def test_streams_come_back(size):
    rng = np.random.default_rng(size)
    run = rng.binomial(20, 0.3, size).astype(np.uint8)
    own = table_of(run)
    low = rng.integers(0, 1 << 16, calls.lane_count(size)).astype(np.uint16)
    (stream,) = lanes.encode([Encoding(run, own, carries=low)])
    ((symbols, back),) = lanes.decode([Decoding(stream, size, own)])
    assert (symbols == run).all()
    assert (back == low).all()


@pytest.mark.parametrize("count", [2, 15, 31])
def test_contexts_choose_among_tables(count):
    rng = np.random.default_rng(count)
    contexts = rng.integers(0, count, 50_000).astype(np.uint8)
    run = (rng.binomial(20, 0.3, contexts.size) + contexts).astype(np.uint8)
    own = table_of(*(run[contexts == i] for i in range(count)))
    (stream,) = lanes.encode([Encoding(run, own, contexts)])
    ((symbols, _),) = lanes.decode([Decoding(stream, run.size, own, contexts)])
    assert (symbols == run).all()
    apart = sum(entropy_of(run[contexts == i]) * (contexts == i).sum() for i in range(count))
    assert 16 * stream.words.size < apart + 0.02 * run.size + 32 * stream.states.size


def test_many_streams_of_many_sizes_and_tables_in_one_call():
    rng = np.random.default_rng(1)
    runs = [
        rng.binomial(30, rng.random(), n).astype(np.uint8)
        for n in rng.integers(1, 60_000, 150).tolist()
    ]
    owns = [table_of(run) for run in runs]
    owns[3], runs[3] = owns[2], runs[2][: runs[3].size]  # one table, two streams
    streams = lanes.encode([Encoding(r, o) for r, o in zip(runs, owns, strict=True)])
    jobs = [Decoding(s, r.size, o) for s, r, o in zip(streams, runs, owns, strict=True)]
    for run, (symbols, low) in zip(runs, lanes.decode(jobs), strict=True):
        assert (symbols == run).all()
        assert not low.any()
    alone = lanes.encode([Encoding(runs[7], owns[7])])[0]
    assert (alone.words == streams[7].words).all(), "company changes nothing"


@pytest.mark.parametrize("p", [0.02, 0.2, 0.5])
@pytest.mark.parametrize("size", [100_000, 1 << 20])
def test_rate_is_near_the_entropy(p, size):
    run = np.random.default_rng(2).binomial(40, p, size).astype(np.uint8)
    (stream,) = lanes.encode([Encoding(run, table_of(run))])
    stored = sum(
        part.nbytes for part in (*lanes.sections(stream.states, stream.counts), stream.words)
    )
    # Five bytes a lane, and what 12 bits of precision cost.
    assert 8 * stored / size < entropy_of(run) + 40 / rans.LANE + 0.006


def test_sections_come_back():
    for counts in ([5, 9, 7], [0, 0], [10, 400], [3]):
        written = np.arange(len(counts), dtype=np.uint32)
        sections = lanes.sections(written, np.array(counts))
        data = np.concatenate([part.view(np.uint8) for part in sections])
        reader = bits.Reader(data, "test")
        states, found = lanes.read_sections(reader, len(counts) * rans.LANE)
        assert states.tolist() == written.tolist()
        assert found.tolist() == counts
        assert reader.left == 0


def test_noise_is_refused_or_decodes_within_its_words():
    rng = np.random.default_rng(3)
    run = rng.binomial(20, 0.3, 30_000).astype(np.uint8)
    own = table_of(run)
    (stream,) = lanes.encode([Encoding(run, own)])
    for _ in range(10):
        words = rng.integers(0, 1 << 16, stream.words.size).astype(np.uint16)
        with pytest.raises(CorruptError, match="lanes elsewhere"):
            lanes.decode([Decoding(Stream(stream.states, stream.counts, words), run.size, own)])


@pytest.mark.parametrize("numbers", [[], [0], [0, 0, 0], [5, 0, 31], list(range(40))])
def test_unary_codes_come_back(numbers):
    numbers = np.array(numbers, np.int64)
    reader = bits.Reader(bits.unary(numbers), "test")
    assert reader.unary(numbers.size).tolist() == numbers.tolist()
    reader.end()


def test_readers_do_not_run_past_the_end():
    for read in (
        lambda r: r.array("<u4", 1),
        lambda r: r.bits(25),
        lambda r: r.unary(100),
        lambda r: r.array("u1", -1),
        lambda r: r.end(),
    ):
        with pytest.raises(CorruptError, match="test"):
            read(bits.Reader(b"\x01\x00\x00", "test"))
