"""Elements with values of their own, decoders, transforms, gradients of rounding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import formats
from jentropy.errors import CorruptError, InputError, UnsupportedError
from jentropy.formats import ElementFormat, Field, Format, QuantizedTensor, SideArray, Step
from jentropy.formats.blocks import scale
from jentropy.formats.document import FORMAT
from jentropy.formats.encoding import encode
from jentropy.quantization.alphabets.integer import integer_element
from jentropy.quantization.level_tables import LEVEL_TABLES, table_element
from jentropy.quantization.minifloats import minifloat_element

OWN = [
    *(minifloat_element(*fields) for fields in ((2, 3), (3, 2), (6, 9), (5, 6), (4, 7), (3, 0))),
    minifloat_element(2, 1, bias=3),
    *(table_element(name, 3 + (name == "POSIT")) for name in LEVEL_TABLES),
    table_element("NF", 4),
    *(integer_element(bits, 1 << (bits - 1)) for bits in (2, 3, 16)),
]


def named(item) -> str:
    return item.name


def all_codes(element: ElementFormat) -> np.ndarray:
    return np.arange(1 << element.code_bits, dtype=element.dtype)


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        (minifloat_element(2, 3), ml_dtypes.float6_e2m3fn),
        (minifloat_element(3, 2), ml_dtypes.float6_e3m2fn),
        (minifloat_element(2, 1), ml_dtypes.float4_e2m1fn),
    ],
    ids=["E2M3", "E3M2", "E2M1"],
)
def test_small_floats_are_those_of_ml_dtypes(element, dtype):
    codes = all_codes(element)
    expected = codes.view(dtype).astype(np.float32)
    assert element.decode(codes).tobytes() == expected.tobytes()


def test_published_tables():
    # Of the paper's code, bitsandbytes' create_normal_map.
    below = (1.0, 0.6961928, 0.52507305, 0.3949175, 0.28444138, 0.18477343, 0.09105004, 0.0)
    above = (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
    nf4 = np.array([*(-x for x in below), *above])
    assert np.abs(np.array(LEVEL_TABLES["NF"](4)) - nf4).max() < 1e-6
    posit = LEVEL_TABLES["POSIT"](8)
    assert [posit[c] for c in (0x7F, 0x60, 0x50, 0x30, 0x81)] == [4096.0, 4.0, 2.0, 0.5, -4096.0]
    assert len({*LEVEL_TABLES["APOT"](4)}) == 15


@pytest.mark.parametrize("element", OWN, ids=named)
def test_codes_of_own_values_come_back_and_are_the_nearest(element):
    codes = all_codes(element)
    numbers = element.decode(codes)
    assert (numbers == np.asarray(element.decode(jnp.asarray(codes)))).all()
    again = element.decode(np.asarray(jax.jit(encode, static_argnums=1)(numbers, element)))
    assert (again == numbers).all()
    rng = np.random.default_rng(0)
    some = (
        rng.standard_normal(500 if codes.size <= 4096 else 40) * np.abs(numbers).max() / 2
    ).astype(np.float32)
    found = element.decode(np.asarray(jax.jit(encode, static_argnums=1)(some, element)))
    best = np.abs(numbers[None, :].astype(np.float64) - some[:, None]).min(1)
    assert np.allclose(np.abs(found.astype(np.float64) - some), best, rtol=1e-6, atol=1e-12)
    number_format = Format(name="X", element=element, parameters=(scale(formats.BF16, (32,)),))
    assert FORMAT.read(FORMAT.write(number_format)) == number_format


def test_a_code_that_its_dtype_decodes_to_something_else_is_refused():
    fields = tuple(
        Field(name=n, bits=b) for n, b in (("sign", 1), ("exponent", 6), ("mantissa", 9))
    )
    code = (Field(name="code", bits=3),)
    for told in (
        {"dtype": np.float16, "fields": fields, "bias": 31},  # FP16 is 1/5/10
        {"dtype": np.float16, "fields": fields[:2], "bias": 31},
        {"dtype": np.int8, "fields": code},  # INT3: every negative would be lost
        {"dtype": np.uint8, "fields": code, "table": (0.0,) * 7},
        {"dtype": np.uint8, "fields": code, "table": (0.0,) * 7 + (float("nan"),)},
        {"dtype": np.uint8, "fields": code, "table": (0.0,) * 7 + (0.1,)},  # no float32
        {"dtype": np.uint16, "fields": fields[::-1], "bias": 31},
        {"dtype": np.uint16, "fields": fields, "bias": -300},
    ):
        with pytest.raises(UnsupportedError):
            ElementFormat(name="X", **{**told, "dtype": np.dtype(told["dtype"])})


def side(name: str, *shape: int, element: ElementFormat = formats.FP16) -> SideArray:
    return SideArray(name=name, element=element, shape=shape)


RAW8 = formats.raw_element("uint8")
CHOICES = Step(
    name="choices",
    settings=(("group", 32),),
    arrays=(side("levels", 2, 4), side("choice", 6, 3, element=RAW8)),
)
STEPPED = Format(
    name="STEPPED",
    element=integer_element(2, 0),
    parameters=(scale(formats.FP32, (1, 32)),),
    decoder=CHOICES,
    transforms=(Step(name="columns", arrays=(side("each", 70),)),),
)


def stepped(stack: tuple[int, ...] = ()) -> QuantizedTensor:
    rng = np.random.default_rng(1)
    codes = {
        "code": rng.integers(0, 4, (*stack, 6, 70), np.uint8),
        "scale": rng.random((*stack, 6, 3), np.float32).view(np.uint32),
        "levels": rng.random((*stack, 2, 4)).astype(np.float16).view(np.uint16),
        "choice": rng.integers(0, 2, (*stack, 6, 3), np.uint8),
        "each": rng.random((*stack, 70)).astype(np.float16).view(np.uint16),
    }
    return QuantizedTensor(number_format=STEPPED, codes=codes)


@pytest.mark.parametrize("stack", [(), (2, 3)])
def test_steps_are_undone_wherever_a_weight_is(stack, tmp_path):
    weight = stepped(stack).check()
    codes = weight.codes
    levels = codes["levels"].view(np.float16).astype(np.float32)
    group = np.arange(70) // 32
    table = codes["choice"][..., group].astype(int)
    at = np.arange(int(np.prod(stack, dtype=int))).reshape(*stack, 1, 1)
    expected = levels.reshape(-1, 2, 4)[at, table, codes["code"].astype(int)]
    expected = expected * codes["scale"].view(np.float32)[..., group]
    expected = expected * codes["each"].view(np.float16).astype(np.float32)[..., None, :]
    assert weight.shape == (*stack, 6, 70)
    assert (weight.dequantize() == expected).all()
    on_device = dataclasses.replace(weight, codes=jax.tree.map(jnp.asarray, codes))
    assert (np.asarray(on_device.dequantize()) == expected).all()
    slabs = formats.dequantize_slabs(weight.number_format, codes, 100)
    assert (np.concatenate(list(slabs)) == expected).all()
    resident = jentropy.to_resident(weight, "reference")
    assert (np.asarray(jentropy.decode(resident, jnp.float32)) == expected).all()
    jentropy.save(tmp_path / "w", jentropy.compress({"w": weight}))
    assert FORMAT.read(FORMAT.write(weight.number_format)) == weight.number_format
    again = jentropy.decompress(jentropy.load(tmp_path / "w"))["w"]
    assert again.number_format == weight.number_format
    assert (again.dequantize() == expected).all()
    report = jentropy.analyze({"w": weight}).formats["STEPPED"]
    assert report.weights == expected.size
    assert report.allocated_bits == pytest.approx(weight.number_format.allocated_bits(weight.shape))
    if not stack:
        x = np.random.default_rng(2).standard_normal((3, 70)).astype(np.float32)
        y = jentropy.matmul(jnp.asarray(x), resident, transpose_w=True)
        assert np.allclose(y, x @ expected.T, rtol=1e-5, atol=1e-6)


def without(document: dict, *keys: str) -> dict:
    return {key: value for key, value in document.items() if key not in keys}


def test_steps_that_contradict_themselves_or_the_codes_are_refused():
    told = FORMAT.write(STEPPED)
    decoder = told["decoder"]
    levels, choice = decoder["arrays"]
    for bad in (
        {"name": "nobody's"},
        {"settings": {}},
        {"settings": {"group": 0}},
        {"settings": {"group": -1}},
        {"settings": {"group": 1 << 70}},
        {"settings": {"group": 32, "more": 1}},
        {"arrays": [levels]},
        {"arrays": [levels, without(choice, "element") | {"element": "FP16"}]},
        {"arrays": [levels | {"shape": [2, 5]}, choice]},
        {"arrays": [levels | {"shape": [4]}, choice]},
        {"arrays": [levels, choice | {"name": "code"}]},
    ):
        with pytest.raises(InputError):
            FORMAT.read(told | {"decoder": decoder | bad})
    for element in (
        {"name": "INT4", "dtype": "uint8", "fields": {"code": 4}, "excess": 3},
        {"name": "X", "dtype": "uint8", "fields": {"code": 1}, "table": [0, 1e999]},
        {"name": "X", "dtype": "uint8", "fields": {"code": 1}, "table": [0, 10**400]},
        {"name": "X", "dtype": "uint8", "fields": {"code": 1}, "table": [0]},
    ):
        with pytest.raises(InputError):
            FORMAT.read(without(told, "decoder") | {"element": element})
    weight = stepped()
    for name, shape in (("levels", (2, 3)), ("choice", (5, 3)), ("each", (69,)), ("code", (7, 70))):
        codes = weight.codes | {name: np.zeros(shape, weight.codes[name].dtype)}
        with pytest.raises(CorruptError):
            dataclasses.replace(weight, codes=codes).check()


def test_gradients_of_rounding_have_names():
    weight = jnp.array([[6.0, 0.1, 0.5, -0.7, 2.9, 0.0, 1.25, 3.1]])
    for name in formats.GRADIENT_RULES:
        numbers = formats.fake_quantize(weight, formats.MXFP4, gradient=name)
        codes = formats.quantize(weight, formats.MXFP4)
        assert (numbers == formats.dequantize(formats.MXFP4, codes)).all()

    def gradient(rule: str) -> np.ndarray:
        def loss(x):
            return formats.fake_quantize(x, formats.MXFP4, gradient=rule).sum()

        return np.asarray(jax.jit(jax.grad(loss))(weight))[0]

    assert (gradient("straight_through") == 1).all()
    low, high = np.array([4, 0, 0.5, -1, 2, 0, 1, 3]), np.array([6, 0.5, 1, -0.5, 3, 0.5, 1.5, 4])
    away = np.abs(2 * (np.asarray(weight)[0] - low) / (high - low) - 1)
    expected = np.minimum(np.maximum(away, 1e-30) ** (1 / 5 - 1) / 5, 3)
    assert np.allclose(gradient("dge"), expected, rtol=1e-4)
    with pytest.raises(UnsupportedError, match="gradient rule"):
        formats.fake_quantize(weight, formats.MXFP4, gradient="none")
    with pytest.raises(UnsupportedError, match="derivative"):
        jax.grad(lambda x: formats.quantize(x, formats.MXFP4)["code"].sum().astype(jnp.float32))(
            weight
        )
