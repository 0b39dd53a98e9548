"""Every code of every format, split into fields, joined, and read as values."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jentropy import formats


def all_codes(number_format: formats.Format) -> np.ndarray:
    """All codes of up to 16 bits; of wider ones every exponent with many mantissas."""
    if number_format.code_bits <= 16:
        return np.arange(1 << number_format.code_bits, dtype=f"u{number_format.code_bits // 8}")
    rng = np.random.default_rng(0)
    top = np.arange(1 << 16, dtype=np.uint32) << 16
    low = rng.integers(0, 1 << 16, top.size, dtype=np.uint32)
    return np.concatenate([top | low, top, top | 0xFFFF])


@pytest.mark.parametrize("name", formats.FORMATS)
def test_split_and_join_are_inverse(name):
    number_format = formats.FORMATS[name]
    codes = all_codes(number_format)
    fields = number_format.split(codes)
    assert list(fields) == [f.name for f in number_format.fields]
    for field in number_format.fields:
        assert fields[field.name].max() == (1 << field.bits) - 1
    assert (number_format.join(fields) == codes).all()


@pytest.mark.parametrize("name", formats.FORMATS)
def test_fields_mean_what_ieee_says(name):
    number_format = formats.FORMATS[name]
    codes = all_codes(number_format)
    fields = {key: part.astype(np.float64) for key, part in number_format.split(codes).items()}
    mantissa_bits = number_format.field_bits("mantissa")
    largest = (1 << number_format.field_bits("exponent")) - 1
    fraction = fields["mantissa"] / 2**mantissa_bits
    normal = fields["exponent"] > 0
    scale = 2.0 ** (np.maximum(fields["exponent"], 1) - number_format.bias)
    expected = np.where(fields["sign"] > 0, -1.0, 1.0) * (normal + fraction) * scale
    finite = fields["exponent"] < largest
    if name == "FP8_E4M3":  # its largest exponent is one of numbers, but for one mantissa
        finite |= fields["mantissa"] < 7
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = number_format.values(codes).astype(np.float64)
    assert (values[finite] == expected[finite]).all()
    assert np.isnan(values[~finite & (fields["mantissa"] > 0)]).all()
    assert np.isinf(values[~finite & (fields["mantissa"] == 0)]).all()


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("on_device", [False, True])
def test_codes_survive_values(name, on_device):
    number_format = formats.FORMATS[name]
    codes = all_codes(number_format)
    given = jax.numpy.asarray(codes) if on_device else codes
    values = number_format.values(given)
    assert values.dtype == number_format.dtype
    assert (np.asarray(formats.codes_of(values)) == codes).all()


def test_format_of_dtype():
    for name, number_format in formats.FORMATS.items():
        assert formats.format_of_dtype(number_format.dtype) == name
    for dtype in (np.int64, np.float64, np.bool_, np.complex128):
        assert formats.format_of_dtype(np.dtype(dtype)) == formats.RAW
        raw = formats.format_named(formats.RAW, np.dtype(dtype))
        assert raw.code_bits == 8 * np.dtype(dtype).itemsize


def test_a_format_whose_fields_do_not_add_up_is_refused():
    with pytest.raises(ValueError, match="16 bits"):
        formats.Format(
            name="X", dtype=np.dtype(np.float16), fields=(formats.Field(name="code", bits=15),)
        )
