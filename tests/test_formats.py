"""Every code of every element, split, joined, read as numbers; formats of blocks dequantised."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import formats
from jentropy.errors import InputError
from jentropy.formats import WHOLE, Format, Parameter, Role

FLOATS = [e for e in formats.ELEMENTS.values() if e.bias is not None]
FULL = [e for e in formats.ELEMENTS.values() if e.code_bits == 8 * e.dtype.itemsize]
INTEGERS = [e for e in formats.ELEMENTS.values() if e.bias is None]


def name_of(item) -> str:
    return item.name


def all_codes(element: formats.ElementFormat) -> np.ndarray:
    """All codes of up to 16 bits; of wider ones every exponent with many mantissas."""
    if element.code_bits <= 16:
        return np.arange(1 << element.code_bits, dtype=formats.code_dtype(element.dtype))
    rng = np.random.default_rng(0)
    top = np.arange(1 << 16, dtype=np.uint32) << 16
    low = rng.integers(0, 1 << 16, top.size, dtype=np.uint32)
    return np.concatenate([top | low, top, top | 0xFFFF])


def bits_of(values) -> np.ndarray:
    return np.asarray(values).view(np.uint32)


@pytest.mark.parametrize("element", formats.ELEMENTS.values(), ids=name_of)
def test_split_and_join_are_inverse(element):
    codes = all_codes(element)
    fields = element.split(codes)
    assert list(fields) == [f.name for f in element.fields]
    for field in element.fields:
        assert fields[field.name].max() == (1 << field.bits) - 1
    assert (element.join(fields) == codes).all()


@pytest.mark.parametrize("element", FLOATS, ids=name_of)
def test_fields_mean_what_the_specifications_say(element):
    codes = all_codes(element)
    fields = {key: part.astype(np.float64) for key, part in element.split(codes).items()}
    none = np.zeros(codes.size)
    mantissa, sign = fields.get("mantissa", none), fields.get("sign", none)
    largest = (1 << element.field_bits("exponent")) - 1
    fraction = mantissa / 2.0 ** element.field_bits("mantissa")
    # E8M0 has neither subnormals nor zero.
    normal = (fields["exponent"] > 0) | (element.name == "FP8_E8M0")
    exponent = np.where(normal, fields["exponent"], 1)
    expected = (
        np.where(sign > 0, -1.0, 1.0) * (normal + fraction) * 2.0 ** (exponent - element.bias)
    )
    finite = fields["exponent"] < largest
    # In narrow formats the largest exponent is one of numbers, too: of E4M3 but for one mantissa.
    if element.code_bits < 8:
        finite |= True
    elif element.name == "FP8_E4M3":
        finite |= mantissa < 7
    with np.errstate(invalid="ignore"):  # signalling NaNs
        numbers = element.decode(codes).astype(np.float64)
    assert (numbers[finite] == expected[finite]).all()
    assert (np.signbit(numbers) == (sign > 0))[finite].all()
    is_nan = ~finite & ((mantissa > 0) | (element.name == "FP8_E8M0"))
    assert np.isnan(numbers[is_nan]).all()
    assert np.isinf(numbers[~finite & ~is_nan]).all()


@pytest.mark.parametrize("element", INTEGERS, ids=name_of)
def test_integers_mean_what_they_are_named_for(element):
    codes = all_codes(element).astype(np.int64)
    half = 1 << (element.code_bits - 1)
    if "EXCESS" in element.name:
        expected = codes - int(element.name.rpartition("EXCESS")[2])
    elif element.name.startswith("U"):
        expected = codes
    else:
        expected = np.where(codes < half, codes, codes - 2 * half)
    assert (element.decode(all_codes(element)) == expected).all()


@pytest.mark.parametrize("element", formats.ELEMENTS.values(), ids=name_of)
def test_a_device_decodes_like_the_host_bit_for_bit(element):
    codes = all_codes(element)
    on_device = jax.jit(element.decode)(jnp.asarray(codes))
    assert (bits_of(on_device) == bits_of(element.decode(codes))).all()


@pytest.mark.parametrize("element", FLOATS, ids=name_of)
def test_numbers_are_those_of_ml_dtypes_and_nan_payloads_stay(element):
    codes = all_codes(element)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        theirs = codes.view(element.dtype).astype(np.float32)
    ours = element.decode(codes)
    nan = np.isnan(theirs)
    assert (np.isnan(ours) == nan).all()
    assert (bits_of(ours) == bits_of(theirs))[~nan].all()
    if element.code_bits == 16:
        back = bits_of(ours)[nan] >> (23 - element.field_bits("mantissa"))
        mask = (1 << element.field_bits("mantissa")) - 1
        assert (back & mask == codes[nan] & mask).all()


@pytest.mark.parametrize("element", FULL, ids=name_of)
@pytest.mark.parametrize("on_device", [False, True])
def test_codes_survive_values(element, on_device):
    codes = all_codes(element)
    given = jnp.asarray(codes) if on_device else codes
    values = element.values(given)
    assert values.dtype == element.dtype
    assert (np.asarray(formats.codes_of(values)) == codes).all()


def test_format_of_dtype():
    for name in ("BF16", "FP16", "FP32", "FP8_E4M3", "FP8_E5M2"):
        assert formats.format_of_dtype(formats.ELEMENTS[name].dtype) == name
    for dtype in (np.int64, np.float64, np.bool_, np.complex128, np.int8, ml_dtypes.int4):
        assert formats.format_of_dtype(np.dtype(dtype)) == formats.RAW
        raw = formats.element_named(formats.RAW, np.dtype(dtype))
        assert raw.code_bits == 8 * np.dtype(dtype).itemsize


def test_formats_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="16 bits"):
        formats.ElementFormat(
            name="X", dtype=np.dtype(np.float16), fields=(formats.Field(name="code", bits=17),)
        )
    scale = formats.MXFP4.parameter("scale")
    with pytest.raises(ValueError, match="parameters"):
        Format(name="X", element=formats.INT4, parameters=(scale, scale))
    inner = dataclasses.replace(scale, name="inner", of="nothing")
    with pytest.raises(ValueError, match="parameters"):
        Format(name="X", element=formats.INT4, parameters=(scale, inner))


@pytest.mark.parametrize(
    ("block", "shape", "grid"),
    [
        ((128, 128), (300, 129), (3, 2)),
        ((32,), (4, 5, 96), (4, 5, 3)),
        ((32, 1), (4, 96, 5), (4, 3, 5)),
        ((WHOLE,), (4, 5), (4, 1)),
        ((WHOLE, 1), (4, 5), (1, 5)),
        ((WHOLE, WHOLE), (3, 4, 5), (3, 1, 1)),
        (None, (3, 4), (1, 1)),
        ((16,), (0, 16), (0, 1)),
    ],
)
def test_grids_of_blocks(block, shape, grid):
    parameter = Parameter(name="scale", field="scale", element=formats.FP32, block=block)
    assert parameter.grid(shape) == grid
    # The entry of every weight, found the slow way.
    entries = np.arange(max(1, np.prod(grid)), dtype=np.uint32)[: np.prod(grid)].reshape(grid)
    number_format = Format(name="X", element=formats.INT8, parameters=(parameter,))
    arrays = {
        "code": np.ones(shape, np.uint8),
        "scale": entries.astype(np.float32).view(np.uint32),
    }
    numbers = formats.dequantize(number_format, arrays)
    assert numbers.shape == shape
    for index in np.ndindex(shape):
        blocks = parameter.blocks(len(shape))
        at = tuple(0 if b == WHOLE else i // b for i, b in zip(index, blocks, strict=True))
        assert numbers[index] == entries[at]


@pytest.mark.parametrize("element", [formats.FP8_E4M3, formats.FP8_E5M2, formats.FP4_E2M1])
def test_every_code_times_every_e8m0_scale_on_host_and_device(element):
    codes = np.tile(all_codes(element), (256, 1))
    scales = np.arange(256, dtype=np.uint8)[:, None]
    number_format = formats.MXFP8.with_element(element).with_parameter("scale", block=(WHOLE,))
    arrays = {"code": codes, "scale": scales}
    on_host = formats.dequantize(number_format, arrays)
    # Doubles hold every product; rounding them once to float32 is the truth.
    with np.errstate(invalid="ignore", over="ignore"):
        exact = (
            element.decode(codes).astype(np.float64)
            * formats.FP8_E8M0.decode(scales).astype(np.float64)
        ).astype(np.float32)
    nan = np.isnan(exact)
    assert (np.isnan(on_host) == nan).all()
    assert (bits_of(on_host) == bits_of(exact))[~nan].all()
    on_device = jax.jit(lambda a: formats.dequantize(number_format, a))(
        jax.tree.map(jnp.asarray, arrays)
    )
    assert (np.isnan(on_device) == nan).all()
    assert (bits_of(on_device) == bits_of(exact))[~nan].all()


@pytest.mark.parametrize(
    "element", [formats.INT4, formats.UINT4, formats.INT4_EXCESS8, formats.INT8]
)
def test_every_integer_with_every_zero_point(element):
    codes = np.tile(all_codes(element), (1 << element.code_bits, 1))
    zeros = all_codes(element)[:, None]
    parameters = (
        Parameter(name="scale", field="scale", element=formats.FP16, block=None),
        Parameter(
            name="zero_point",
            field="zero_point",
            element=element,
            block=(WHOLE,),
            role=Role.ZERO_POINT,
        ),
    )
    arrays = {
        "code": codes,
        "zero_point": zeros,
        "scale": np.array([[0.125]], np.float16).view(np.uint16),
    }
    number_format = Format(name="INT", element=element, parameters=parameters)
    expected = (element.decode(codes) - element.decode(zeros)) * np.float32(0.125)
    for given in (arrays, jax.tree.map(jnp.asarray, arrays)):
        assert (np.asarray(formats.dequantize(number_format, given)) == expected).all()


def test_scales_of_scales_multiply_or_divide_and_offsets_are_subtracted():
    codes = np.arange(16, dtype=np.uint8)[None, :]
    arrays = {
        "code": codes,
        "scale": np.array([[0x40]], np.uint8),  # 2.0
        "tensor_scale": np.array([[0.5]], np.float32).view(np.uint32),
    }
    values = formats.FP4_E2M1.decode(codes)
    np.testing.assert_array_equal(formats.dequantize(formats.NVFP4, arrays), values * 1.0)
    divided = formats.NVFP4.with_parameter("tensor_scale", role=Role.DIVISOR)
    np.testing.assert_array_equal(formats.dequantize(divided, arrays), values * 4.0)
    offset = dataclasses.replace(formats.NVFP4.parameters[1], role=Role.OFFSET, of=None)
    shifted = dataclasses.replace(formats.NVFP4, parameters=(formats.NVFP4.parameters[0], offset))
    np.testing.assert_array_equal(formats.dequantize(shifted, arrays), values * 2.0 - 0.5)


@pytest.mark.parametrize("shape", [(300, 200), (5, 64, 96), (1, 32), (0, 32)])
@pytest.mark.parametrize("block", [(128, 128), (32, 1), (16,), (WHOLE, 1), None])
def test_slabs_are_parts_of_the_whole(shape, block):
    rng = np.random.default_rng(0)
    number_format = formats.FP8_BLOCK.with_parameter("scale", block=block)
    scale = rng.random(number_format.parameter("scale").grid(shape)).astype(np.float32)
    arrays = {
        "code": rng.integers(0, 0x7F, shape).astype(np.uint8),
        "scale": scale.view(np.uint32),
    }
    whole = formats.dequantize(number_format, arrays)
    slabs = list(formats.dequantize_slabs(number_format, arrays, 10_000))
    assert (np.concatenate(slabs) == whole).all()
    assert len(slabs) > 1 or whole.size <= 10_000 or block == (WHOLE, 1)


def test_scattered_groups():
    number_format = formats.INT4_GROUP.with_parameter("scale", element=formats.FP32, block=(2,))
    arrays = {
        "code": np.ones((1, 4), np.uint8),
        "scale": np.array([[3.0, 5.0]], np.float32).view(np.uint32),
        formats.GROUP_INDEX: np.array([1, 0, 0, 1], np.int32),
    }
    assert formats.dequantize(number_format, arrays).tolist() == [[5.0, 3.0, 3.0, 5.0]]


@pytest.mark.parametrize(
    ("name", "bits"),
    [("BF16", 16), ("MXFP4", 4.25), ("MXFP8", 8.25), ("NVFP4", 4.5), ("FP8_BLOCK", 8 + 32 / 2**14)],
)
def test_allocated_bits(name, bits):
    shape = (1024, 1024)
    tensor_scale = 32 / 2**20 if name == "NVFP4" else 0
    assert formats.FORMATS[name].allocated_bits(shape) == bits + tensor_scale


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 33])
def test_packed_codes_come_back(dtype, bits, count):
    codes = np.random.default_rng(count).integers(0, 1 << bits, (3, count)).astype(np.uint8)
    words = formats.pack(codes, bits, dtype)
    assert words.dtype == dtype
    assert words.shape == (3, -(-count * bits // (8 * np.dtype(dtype).itemsize)))
    assert (formats.unpack(words, bits, count=count) == codes).all()
    assert (formats.unpack(words.T, bits, axis=0, count=count) == codes.T).all()


def test_codes_beyond_an_element_are_refused():
    arrays = formats.quantize(jnp.ones((4, 32)), formats.MXFP4)
    codes = {key: np.array(part) for key, part in arrays.items()}
    codes["code"][1, 2] = 200
    weight = formats.QuantizedTensor(number_format=formats.MXFP4, codes=codes)
    for use in (weight.dequantize, lambda: jentropy.analyze({"w": weight})):
        with pytest.raises(InputError, match="codes of FP4_E2M1: expected below 16, found 200"):
            use()
