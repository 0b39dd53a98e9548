"""Every archive codec on every format: bit for bit, within its bound, near the entropy."""

from __future__ import annotations

import numpy as np
import pytest

from jentropy import codecs, entropy, formats
from jentropy.codecs import Coding, planes, rans_planes
from jentropy.errors import CorruptError, UnsupportedError

from .test_formats import all_codes

SIZES = [0, 1, 2, 255, 4096, 4097, 70_001]
ELEMENTS = [*formats.FORMATS.values(), formats.raw_format(np.dtype(np.int64))]


def coding_of(name: str, number_format: formats.Format, codes: np.ndarray) -> Coding | None:
    """Parameters with which a codec takes these codes; None if it cannot."""
    if name == "stored":
        return Coding(codec="stored")
    if number_format.bias is None or codes.size == 0:
        return None
    counts = entropy.measure(codes, number_format)
    tables = [
        codecs.FrequencyTable.of_counts(c)
        for c in planes.plane_counts(number_format, counts.slices)
    ]
    return Coding(codec="rans", tables=tuple(tables))


def round_trip(codes: np.ndarray, number_format: formats.Format, coding: Coding) -> np.ndarray:
    (payload,) = codecs.encode([codes], [number_format], [coding])
    assert payload.dtype == np.uint8
    assert payload.size <= codecs.CODECS[coding.codec].size_bound(codes.size, number_format)
    (out,) = codecs.decode([payload], [codes.size], [number_format], [coding])
    return out


def identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("number_format", ELEMENTS, ids=lambda f: f.name)
@pytest.mark.parametrize("name", codecs.CODECS)
def test_every_code_comes_back(name, number_format):
    codes = (
        all_codes(number_format) if number_format.code_bits <= 32 else np.arange(1000, dtype="u8")
    )
    coding = coding_of(name, number_format, codes)
    if coding is not None:
        assert identical(round_trip(codes, number_format, coding), codes)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number_format", ELEMENTS, ids=lambda f: f.name)
@pytest.mark.parametrize("name", codecs.CODECS)
def test_every_size_comes_back(name, number_format, size):
    rng = np.random.default_rng(size)
    codes = formats.codes_of((rng.standard_normal(size) * 0.02).astype(number_format.dtype))
    coding = coding_of(name, number_format, codes)
    if coding is not None:
        assert identical(round_trip(codes, number_format, coding), codes)


@pytest.mark.parametrize("number_format", formats.FORMATS.values(), ids=lambda f: f.name)
def test_planes_are_a_partition_of_the_bits(number_format):
    covered = sorted(
        bit
        for plane in planes.planes_of(number_format)
        for run in plane
        for bit in range(run.low, run.low + run.count)
    )
    assert covered == list(range(number_format.code_bits))
    codes = all_codes(number_format)
    counts = entropy.measure(codes, number_format)
    derived = planes.plane_counts(number_format, counts.slices)
    for index, histogram in enumerate(derived):
        symbols = planes.extract(codes, number_format=number_format, index=index)
        np.testing.assert_array_equal(histogram, np.bincount(symbols, minlength=256))


@pytest.mark.parametrize("number_format", formats.FORMATS.values(), ids=lambda f: f.name)
def test_the_chosen_coding_is_near_the_split_entropy(number_format):
    values = np.random.default_rng(5).standard_normal(1 << 20) * 0.02
    codes = formats.codes_of(values.astype(number_format.dtype))
    counts = entropy.measure(codes, number_format)
    coding = codecs.choose(number_format, counts)
    (payload,) = codecs.encode([codes], [number_format], [coding])
    stored = 8 * payload.size / codes.size
    assert stored < counts.entropy_bits() + 0.05
    assert stored < number_format.code_bits * 0.9


def test_what_does_not_shrink_is_stored():
    noise = np.random.default_rng(6).integers(0, 1 << 16, 100_000).astype(np.uint16)
    coding = codecs.choose(formats.BF16, entropy.measure(noise, formats.BF16))
    assert coding == Coding(codec="stored")
    half = (noise & 0x80FF) | 0x3F00  # a mantissa and a sign of noise under a constant exponent
    coding = codecs.choose(formats.BF16, entropy.measure(half, formats.BF16))
    assert [table is None for table in coding.tables] == [False, True]


def test_many_chunks_of_many_codecs_keep_their_order():
    rng = np.random.default_rng(7)
    chunks, elements, codings = [], [], []
    for i in range(12):
        number_format = ELEMENTS[i % len(ELEMENTS)]
        values = (rng.standard_normal(100 + 1000 * i) * 0.02).astype(number_format.dtype)
        codes = formats.codes_of(values)
        chunks.append(codes)
        elements.append(number_format)
        codings.append(codecs.choose(number_format, entropy.measure(codes, number_format)))
    assert {c.codec for c in codings} == set(codecs.CODECS)
    payloads = codecs.encode(chunks, elements, codings)
    decoded = codecs.decode(payloads, [c.size for c in chunks], elements, codings)
    assert all(identical(a, b) for a, b in zip(decoded, chunks, strict=True))


@pytest.mark.parametrize("cut", [0, 1, 5, 100, -1])
def test_a_payload_of_the_wrong_length_is_refused(cut):
    codes = formats.codes_of(np.random.default_rng(8).standard_normal(5000).astype(np.float16))
    coding = codecs.choose(formats.FP16, entropy.measure(codes, formats.FP16))
    (payload,) = codecs.encode([codes], [formats.FP16], [coding])
    short = payload[:cut] if cut >= 0 else np.concatenate([payload, payload[:1]])
    with pytest.raises(CorruptError, match="bytes"):
        codecs.decode([short], [codes.size], [formats.FP16], [coding])


def test_an_unknown_codec_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="huffman"):
        codecs.decode([np.zeros(1, np.uint8)], [1], [formats.BF16], [Coding(codec="huffman")])


def test_costs_are_integers_of_the_right_size():
    assert rans_planes._COST[[1, 2, 4096]].tolist() == [12 << 16, 11 << 16, 0]
