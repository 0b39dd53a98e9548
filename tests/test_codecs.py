"""Every archive codec on every format: bit for bit, within its bound, near the entropy."""

from __future__ import annotations

import numpy as np
import pytest

from jentropy import codecs, entropy, formats
from jentropy.codecs import Coding, planes, rans_planes
from jentropy.errors import CorruptError, UnsupportedError

from .test_formats import all_codes

SIZES = [0, 1, 2, 255, 4096, 4097, 70_001]
RAW = [formats.raw_element(np.dtype(t)) for t in (np.uint8, np.int32, np.int64, np.complex128)]
# Codes that fill their numbers; narrower ones are coded as the RAW numbers that they are packed in.
FULL = [e for e in formats.ELEMENTS.values() if e.code_bits == 8 * e.dtype.itemsize]
ELEMENTS = [*FULL, *RAW]


def name_of(element: formats.ElementFormat) -> str:
    return f"{element.name}-{element.dtype.name}"


def random_codes(element: formats.ElementFormat, size: int) -> np.ndarray:
    """Codes that are worth coding: weights, or small integers in every nibble."""
    rng = np.random.default_rng(size)
    if element.bias is None:
        values = rng.binomial(14, 0.5, (size, element.dtype.itemsize)).astype(np.uint8)
        return formats.codes_of((values << 4 | values).view(element.dtype).reshape(-1))
    return formats.codes_of((rng.standard_normal(size) * 0.02).astype(element.dtype))


def codings_of(name: str, element: formats.ElementFormat, codes: np.ndarray) -> list[Coding]:
    """Every way in which a codec can take these codes."""
    if name == "stored":
        return [Coding(codec="stored")]
    if codes.size == 0:
        return []
    counts = entropy.measure(codes, element)
    codings = []
    for nibbles in (False, True) if element.name == formats.RAW else (False,):
        tables = [
            codecs.FrequencyTable.of_counts(c)
            for c in planes.plane_counts(element, counts.slices, nibbles)
        ]
        for some in (tables, [None, *tables[1:]]):
            codings.append(Coding(codec="rans", tables=tuple(some), nibbles=nibbles))
    return codings


def round_trip(codes: np.ndarray, element: formats.ElementFormat, coding: Coding) -> np.ndarray:
    (payload,) = codecs.encode([codes], [element], [coding])
    assert payload.dtype == np.uint8
    assert payload.size <= codecs.CODECS[coding.codec].size_bound(codes.size, element)
    (out,) = codecs.decode([payload], [codes.size], [element], [coding])
    return out


def identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("element", FULL, ids=name_of)
@pytest.mark.parametrize("name", codecs.CODECS)
def test_every_code_comes_back(name, element):
    codes = all_codes(element)
    for coding in codings_of(name, element, codes):
        assert identical(round_trip(codes, element, coding), codes)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("element", ELEMENTS, ids=name_of)
@pytest.mark.parametrize("name", codecs.CODECS)
def test_every_size_comes_back(name, element, size):
    codes = random_codes(element, size)
    for coding in codings_of(name, element, codes):
        assert identical(round_trip(codes, element, coding), codes)


CUTS = [(f, False) for f in ELEMENTS] + [(f, True) for f in RAW]


@pytest.mark.parametrize(("element", "nibbles"), CUTS, ids=lambda v: getattr(v, "name", v))
def test_planes_are_a_partition_of_the_bits(element, nibbles):
    made = planes.planes_of(element, nibbles)
    covered = sorted(
        bit for plane in made for run in plane for bit in range(run.low, run.low + run.count)
    )
    assert covered == list(range(element.code_bits))
    codes = random_codes(element, 5000)
    counts = entropy.measure(codes, element)
    derived = planes.plane_counts(element, counts.slices, nibbles)
    symbols = planes.split(codes, element, nibbles)
    for histogram, plane in zip(derived, symbols, strict=True):
        np.testing.assert_array_equal(histogram, np.bincount(plane, minlength=256))
    if element.code_bits > 64:
        return
    wide = codes.astype(np.uint64)
    for plane, runs in zip(symbols, made, strict=True):
        expected = np.zeros_like(wide)
        for run in runs:
            part = (wide >> np.uint64(run.low)) & np.uint64((1 << run.count) - 1)
            expected = expected << np.uint64(run.count) | part
        np.testing.assert_array_equal(plane, expected)


@pytest.mark.parametrize("element", FULL, ids=name_of)
def test_the_chosen_coding_is_near_the_split_entropy(element):
    scale = 0.02 if element.code_bits > 8 else 8.0  # 8-bit floats come with a scale
    values = np.random.default_rng(5).standard_normal(1 << 20) * scale
    codes = formats.codes_of(values.astype(element.dtype))
    counts = entropy.measure(codes, element)
    coding = codecs.choose(element, counts)
    (payload,) = codecs.encode([codes], [element], [coding])
    stored = 8 * payload.size / codes.size
    assert stored < counts.entropy_bits() + 0.05
    assert stored < element.code_bits * 0.9


def test_packed_nibbles_are_coded_as_nibbles():
    """Eight independent 4-bit numbers to a word, as INT4 checkpoints have them."""
    raw = formats.raw_element(np.dtype(np.int32))
    rng = np.random.default_rng(9)
    values = np.clip(np.round(rng.normal(8, 2.2, (1 << 18, 8))), 0, 15).astype(np.uint32)
    packed = (values << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    coding = codecs.choose(raw, entropy.measure(packed, raw))
    assert coding.nibbles
    (payload,) = codecs.encode([packed], [raw], [coding])
    p = np.bincount(values.reshape(-1)) / values.size
    entropy_bits = float(-(p[p > 0] * np.log2(p[p > 0])).sum())
    assert 8 * payload.size / values.size < entropy_bits + 0.03
    (out,) = codecs.decode([payload], [packed.size], [raw], [coding])
    assert identical(out, packed)


def test_indices_cost_what_they_say():
    raw = formats.raw_element(np.dtype(np.int64))
    ids = np.random.default_rng(10).integers(0, 256, 100_000)
    coding = codecs.choose(raw, entropy.measure(formats.codes_of(ids), raw))
    (payload,) = codecs.encode([formats.codes_of(ids)], [raw], [coding])
    assert 8 * payload.size / ids.size < 8.4  # seven bytes of eight are zero


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
    for i in range(18):
        element = ELEMENTS[i % len(ELEMENTS)]
        codes = random_codes(element, 100 + 1000 * i)
        if i % 5 == 4:
            noise = rng.integers(0, 256, codes.nbytes, dtype=np.uint8)
            codes = noise.view(codes.dtype)
        chunks.append(codes)
        elements.append(element)
        codings.append(codecs.choose(element, entropy.measure(codes, element)))
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
