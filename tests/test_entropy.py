"""Histograms, entropies and magnitudes against NumPy and against closed forms."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jentropy import entropy, formats
from jentropy.entropy import histogram
from jentropy.entropy.magnitude import magnitudes_of


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 4), (np.uint8, 8), (np.uint16, 16)])
@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 5000])
def test_count_matches_bincount(dtype, bits, size):
    codes = np.random.default_rng(size).integers(0, 1 << bits, size).astype(dtype)
    expected = np.bincount(codes.astype(np.int64), minlength=1 << bits)
    counted = histogram.count(codes, bits=bits)
    assert counted.dtype == np.int64
    np.testing.assert_array_equal(counted, expected)


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 4), (np.uint8, 8), (np.uint16, 16)])
def test_count_adds_pieces(monkeypatch, place, dtype, bits):
    monkeypatch.setattr(histogram, "PROGRAMS", (700, 1000))
    monkeypatch.setattr(histogram, "SMALL", 0)
    monkeypatch.setattr(histogram, "_SCATTER_BLOCK", 50)
    monkeypatch.setattr(histogram, "MOST", 400)
    monkeypatch.setattr(histogram, "FEW", 100)
    monkeypatch.setattr(histogram, "BLOCK", 99)
    monkeypatch.setattr(histogram, "PAIRS", 100)
    codes = np.random.default_rng(0).integers(0, 1 << bits, (37, 91)).astype(dtype)
    expected = np.bincount(codes.reshape(-1), minlength=1 << bits)
    np.testing.assert_array_equal(histogram.count(place(codes), bits=bits), expected)
    strided = np.bincount(codes[:, ::2].reshape(-1), minlength=1 << bits)
    np.testing.assert_array_equal(histogram.count(place(codes[:, ::2]), bits=bits), strided)


@pytest.mark.parametrize("size", [99, 350, 850])
def test_what_follows_in_a_room_is_not_counted(monkeypatch, size):
    monkeypatch.setattr(histogram, "_SCATTER_BLOCK", 50)
    monkeypatch.setattr(histogram, "MOST", 400)
    monkeypatch.setattr(histogram, "FEW", 100)
    room = histogram.room(size)
    room[:] = np.arange(room.size) + 65_000
    counting = histogram.begin(room, bits=16, size=size)
    np.testing.assert_array_equal(counting.result(), np.bincount(room[:size], minlength=1 << 16))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_count_without_scatter_is_the_same(bits):
    codes = jnp.asarray(np.random.default_rng(1).integers(0, 1 << bits, 40_000), jnp.uint16)
    np.testing.assert_array_equal(
        histogram._count_by_matmul(codes, bits=bits), histogram._count_by_scatter(codes, bits=bits)
    )


def test_totals_are_exact_beyond_32_bits():
    counts = entropy.Counts(
        element=formats.BF16, weights=2**40, slices=(np.full(1 << 16, 2**24, np.int64),)
    )
    doubled = counts + counts
    assert doubled.weights == 2**41
    assert int(doubled.slices[0].sum()) == 2**41
    assert doubled.field_entropy_bits() == {"sign": 1.0, "exponent": 8.0, "mantissa": 7.0}
    assert doubled.joint_entropy_bits() == 16.0


@pytest.mark.parametrize("name", ["BF16", "FP16", "FP32", "FP8_E4M3", "FP8_E5M2"])
def test_fields_match_an_independent_count(name):
    element = formats.ELEMENTS[name]
    values = (np.random.default_rng(2).standard_normal(50_000) * 0.02).astype(element.dtype)
    counts = entropy.measure(formats.codes_of(values), element)
    for field, part in element.split(formats.codes_of(values)).items():
        if element.field_bits(field) > 16:
            continue
        _, occurrences = np.unique(part, return_counts=True)
        p = occurrences / values.size
        assert counts.field_entropy_bits()[field] == pytest.approx(-(p * np.log2(p)).sum())
    total = sum(counts.field_entropy_bits().values())
    assert counts.entropy_bits() == pytest.approx(total)
    if element.code_bits <= 16:
        assert counts.joint_entropy_bits() <= counts.entropy_bits()
    else:
        assert counts.joint_entropy_bits() is None


def test_a_wide_mantissa_is_measured_in_parts():
    values = np.random.default_rng(3).standard_normal(200_000).astype(np.float32)
    counts = entropy.measure(formats.codes_of(values), formats.FP32)
    mantissa = counts.field_entropy_bits()["mantissa"]
    assert 22.9 < mantissa <= 23  # a plug-in over 2^23 bins would read log2(200,000) = 17.6
    upcast = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    counts = entropy.measure(formats.codes_of(upcast), formats.FP32)
    assert 6.9 < counts.field_entropy_bits()["mantissa"] <= 7


def test_magnitudes_of_a_gaussian():
    sigma = 0.02
    values = np.random.default_rng(4).standard_normal(1_000_000) * sigma
    values[:1000] = 0
    codes = formats.codes_of(values.astype(ml_dtypes.bfloat16))
    counts = entropy.measure_weight({"code": codes}, formats.FORMATS["BF16"])
    result = magnitudes_of([counts]).to_json()
    # log2 |x| has mean log2 sigma - (gamma + ln 2) / (2 ln 2) and deviation pi / (2 sqrt 2 ln 2);
    # leaving the smallest out moves both a little.
    assert result["mean_log2"] == pytest.approx(np.log2(sigma) - 0.9164, abs=0.01)
    assert result["std_log2"] == pytest.approx(1.6025, abs=0.03)
    log2 = np.log2(np.abs(values[np.abs(values) >= 2.0**-16]))
    assert result["mean_log2"] == pytest.approx(log2.mean(), abs=0.001)
    assert result["std_log2"] == pytest.approx(log2.std(), abs=0.001)
    assert result["small_fraction"] == pytest.approx(0.001 + 0.0006, abs=0.0002)
    assert len(result["log2_edges"]) == len(result["counts"]) + 1
    assert sum(result["counts"]) == round(1_000_000 * (1 - result["small_fraction"]))


def test_magnitudes_leave_nan_and_inf_out():
    values = np.array([np.nan, np.inf, -np.inf, 1.0, -2.0, 0.0], np.float16)
    codes = {"code": formats.codes_of(values)}
    counts = entropy.measure_weight(codes, formats.FORMATS["FP16"])
    result = magnitudes_of([counts]).to_json()
    assert sum(result["counts"]) == 2
    assert result["small_fraction"] == pytest.approx(1 / 3)
    assert result["mean_log2"] == 0.5


def test_magnitudes_of_nothing():
    assert magnitudes_of([]).to_json()["mean_log2"] is None


def test_a_report_pools_formats_and_keeps_tensors_apart():
    builder = entropy.ReportBuilder("test")
    narrow, wide = np.full(100, 1.0, np.float16), np.full(300, 2.0, np.float16)
    for name, values in (("a", narrow), ("b", wide)):
        counts = entropy.measure_weight({"code": formats.codes_of(values)}, formats.FORMATS["FP16"])
        builder.add(name, "plain", values.shape, counts)
    ids = np.arange(4, dtype=np.int64)
    raw = formats.plain_format(ids.dtype)
    builder.add("ids", "plain", ids.shape, entropy.measure_weight({"code": ids}, raw))
    report = builder.build()
    assert report.weights == 400  # indices are no weights
    assert report.formats["RAW"].weights == 4
    assert [t.entropy_bits for t in report.tensors[:2]] == [0.0, 0.0]
    p = np.array([0.25, 0.75])
    pooled = float(-(p * np.log2(p)).sum())
    assert report.formats["FP16"].fields["exponent"].entropy_bits == pytest.approx(pooled)
    assert report.formats["FP16"].allocated_bits == 16


def shannon(codes) -> float:
    p = np.unique(np.asarray(codes), return_counts=True)[1] / np.size(codes)
    return float(-(p * np.log2(p)).sum())


def test_parameters_are_spread_over_the_weights_that_they_serve():
    rng = np.random.default_rng(5)
    arrays = {
        "code": rng.binomial(15, 0.4, (64, 96)).astype(np.uint8),
        "scale": rng.binomial(255, 0.5, (64, 6)).astype(np.uint8),
        "tensor_scale": np.array([[0.01]], np.float32).view(np.uint32),
    }
    counts = entropy.measure_weight(arrays, formats.NVFP4)
    fields = formats.FP4_E2M1.split(arrays["code"])
    measured = counts.field_entropy_bits()
    for name, part in fields.items():
        assert measured[name] == pytest.approx(shannon(part))
    assert measured["scale"] == pytest.approx(shannon(arrays["scale"]) / 16)
    assert measured["tensor_scale"] == 0  # one number is no surprise
    joint = shannon(arrays["code"]) + shannon(arrays["scale"]) / 16
    assert counts.joint_entropy_bits() == pytest.approx(joint)
    assert counts.entropy_bits() == pytest.approx(sum(measured.values()))
    assert counts.allocated_bits() == pytest.approx(4.5 + 32 / arrays["code"].size)
    builder = entropy.ReportBuilder("test")
    for name in ("a", "b"):
        builder.add(name, "modelopt", (64, 96), counts)
    row = builder.build().formats["NVFP4"]
    assert list(row.fields) == ["sign", "exponent", "mantissa", "scale", "tensor_scale"]
    assert row.fields["scale"].allocated_bits == 0.5
    assert row.joint_entropy_bits == pytest.approx(joint)


def test_magnitudes_of_a_block_format_are_those_of_its_numbers():
    arrays = {
        "code": np.array([[2, 10, 4, 0]], np.uint8),  # 1, -1, 2, 0
        "scale": np.array([[124]], np.uint8),  # 1/8
    }
    counts = entropy.measure_weight(arrays, formats.MXFP4.with_parameter("scale", block=(4,)))
    result = magnitudes_of([counts]).to_json()
    assert result["mean_log2"] == pytest.approx((-3 - 3 - 2) / 3, abs=0.01)
    assert result["small_fraction"] == 0.25


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_packed_codes_are_counted_apart(dtype):
    codes = np.random.default_rng(6).binomial(15, 0.3, (8, 64)).astype(np.uint8)
    counts = entropy.measure_packed(
        entropy.count_bytes(formats.pack(codes, 4, dtype)), formats.INT4_EXCESS8
    )
    assert counts.weights == codes.size
    np.testing.assert_array_equal(counts.slices[0], np.bincount(codes.reshape(-1), minlength=16))
    assert counts.joint_entropy_bits() == pytest.approx(shannon(codes))
