"""MXFP4 and NVFP4 on TPU: every code with every scale, what words lack, and ways to multiply."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy import pallas_kernels as kernels
from jentropy.formats import MXFP4, NVFP4, QuantizedTensor, Role, dequantize, quantize
from jentropy.pallas_kernels import fused, reference, targets
from jentropy.pallas_kernels.targets import TPUS
from jentropy.pallas_kernels.tpu import columns, nibbles
from jentropy.pallas_kernels.tpu_mxfp4 import layout, other_blocks, zeros
from jentropy.pallas_kernels.variants import abstract_weight

from .conftest import same_bits
from .interpreted import decode, multiply

pytestmark = pytest.mark.usefixtures("compiled_quickly")
DIVIDED = NVFP4.with_parameter("tensor_scale", role=Role.DIVISOR)


@pytest.fixture
def on(monkeypatch):
    """Takes this process for a TPU of a generation."""
    return lambda name: monkeypatch.setattr(targets, "current_tpu", lambda: TPUS[name])


def gaussian(shape, number_format=MXFP4, seed=0) -> QuantizedTensor:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.02
    return weight_of(number_format, **quantize(jnp.asarray(values), number_format))


def weight_of(number_format, **codes) -> QuantizedTensor:
    arrays = {name: jnp.asarray(array) for name, array in codes.items()}
    return QuantizedTensor(number_format=number_format, codes=arrays)


def every_code(rows: int, block: int, blocks: int) -> np.ndarray:
    """uint8[rows, block * blocks]: all sixteen codes in every block."""
    order = np.random.default_rng(1).permuted(
        np.tile(np.arange(16), (rows * blocks, block // 16)), axis=1
    )
    return order.reshape(rows, -1).astype(np.uint8)


def numbers(weight: QuantizedTensor) -> np.ndarray:
    return np.asarray(dequantize(weight.number_format, weight.codes, jnp.float32))


def expect_decoded(w, weight, dtype=jnp.float32) -> None:
    """By the kernel and in plain JAX, all numbers and some rows, bit for bit."""
    expected = dequantize(weight.number_format, weight.codes, dtype)
    assert same_bits(decode(w, dtype, "hlo"), expected)
    assert same_bits(reference.decode(w, dtype), expected)
    ids = jnp.arange(0, weight.shape[0], 3)
    assert same_bits(kernels.take_rows(w, ids, dtype), expected[ids])


def expect_product(w, weight, rows=16) -> None:
    """Within the error of sums in float32, NaN where a dense product has it."""
    x = jnp.asarray(np.random.default_rng(2).standard_normal((rows, weight.shape[1])), jnp.bfloat16)
    y = multiply(x, w, transpose_w=True, out_dtype=jnp.float32, interpret="hlo")
    x, dense = np.asarray(x, np.float64), numbers(weight).astype(np.float64)
    sound = np.linalg.norm(dense, axis=1) < 1e36  # not of NaN
    expected = x @ dense[sound].T
    sizes = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(dense[sound], axis=1)
    np.testing.assert_array_less(np.abs(y[:, sound] - expected), 4e-7 * sizes + 1e-30)
    assert np.isnan(y[:, np.isnan(dense).any(1)]).all()


def expect_exact(w, weight, rows: slice) -> None:
    """Rows of the identity give columns of numbers, those that float32 has as normal ones."""
    x = jnp.eye(weight.shape[1], dtype=jnp.bfloat16)[rows]
    y = multiply(x, w, transpose_w=True, out_dtype=jnp.float32, interpret="hlo")
    expected = numbers(weight).T[rows]
    normal = np.abs(expected) >= 2.0**-126
    np.testing.assert_array_equal(np.asarray(y)[normal], expected[normal])


@pytest.mark.parametrize("target", ["v6e", "v7x"])
def test_every_code_with_every_power(target, on, monkeypatch):
    """A column holds as many powers as a layout can add; what it cannot is listed."""
    on(target)
    least, most = layout.SPANS[int(target == "v7x")]
    span = most - least + 1
    first = np.arange(layout.LEAST, layout.MOST, span)
    scale = np.minimum(first[:, None] + np.arange(span), layout.MOST)
    code = every_code(len(first), 32, span)
    weight = weight_of(MXFP4, code=code, scale=scale.astype(np.uint8))
    w = kernels.to_resident(weight, "tpu")
    assert w.layout == "tpu_mxfp4"
    assert "others" not in w.arrays
    expect_decoded(w, weight)
    for at in range(0, weight.shape[1], 176):
        expect_exact(w, weight, slice(at, at + 16))

    beyond = scale.copy()
    beyond[:5, 3] = 0, 1, 253, 254, 255
    beyond[5, :2] = np.array([1, -1]) * span + first[5]  # as far from most, on both sides
    weight = replace(weight, codes={**weight.codes, "scale": jnp.asarray(beyond, jnp.uint8)})
    w = kernels.to_resident(weight, "tpu")
    assert "others" in w.arrays
    expect_decoded(w, weight, jnp.bfloat16)
    expect_product(w, weight)
    monkeypatch.setattr(other_blocks, "RARE_SHARE", 1 << 20)  # as if there were many
    assert kernels.to_resident(weight, "tpu").backend == "reference"


def test_signs_of_zeros_lie_apart():
    weight = gaussian((128, 1024))
    w = kernels.to_resident(weight, "tpu")
    abstract = kernels.to_resident(abstract_weight(MXFP4, (128, 1024)), "tpu")
    assert {name: a.shape for name, a in abstract.arrays.items()} == {
        name: a.shape for name, a in w.arrays.items()
    }
    assert w.bits_per_weight < 4.5
    assert "signs" not in fused.as_read(w).arrays
    code = np.array(weight.codes["code"])
    code[code == 8] = 0
    positive = replace(weight, codes={**weight.codes, "code": jnp.asarray(code)})
    assert "signs" not in kernels.to_resident(positive, "tpu").arrays
    code[:] = np.random.default_rng(3).integers(0, 2, code.shape) * 8  # zeros only
    code[0, :16] = np.arange(16)
    none = replace(weight, codes={**weight.codes, "code": jnp.asarray(code)})
    packed = kernels.to_resident(none, "tpu")
    assert packed.arrays["signs"].shape[-2] == zeros.TILE // zeros.WORD
    expect_decoded(packed, none)


@pytest.mark.parametrize("number_format", [MXFP4, NVFP4], ids=["MXFP4", "NVFP4"])
def test_words_of_one_generation_are_read_on_another(number_format, on):
    weight = gaussian((130, 256), number_format)
    on("v7x")
    w = kernels.to_resident(weight, "tpu")
    assert w.option("native")
    on("v5e")
    expect_decoded(w, weight)


@pytest.mark.parametrize(
    ("dialect", "expected"), [("gptoss_mxfp4", "tpu_mxfp4"), ("mo_nvfp4_gptoss", "tpu_nvfp4")]
)
def test_experts_that_are_stored_by_their_inputs(fixtures, dialect, expected):
    """A stack of [K, N], and scales of 32 rows."""
    checkpoint = jentropy.open_checkpoint(fixtures / "quantised" / dialect)
    tensors = (checkpoint.tensor(name) for name in checkpoint.names())
    tensor = next(t for t in tensors if t.number_format.element.name == "FP4_E2M1")
    w = kernels.to_resident(tensor, "tpu", reduce_axis=-2)
    assert w.layout == expected
    assert "others" not in w.arrays
    dense = tensor.dequantize()
    np.testing.assert_array_equal(decode(w, jnp.float32, "hlo"), dense)
    sizes = np.array([3, 0, 12, 1])
    x = jnp.asarray(np.random.default_rng(6).standard_normal((16, dense.shape[1])), jnp.bfloat16)
    y = kernels.grouped_matmul(x, w, sizes, out_dtype=jnp.float32, interpret="hlo")
    each = np.asarray(x, np.float64)[:, None] @ dense[np.repeat(np.arange(4), sizes)]
    np.testing.assert_allclose(y, each[:, 0], atol=2e-6 * np.abs(each).max())


def test_nibbles_are_bytes_of_e5m2():
    codes = np.random.default_rng(4).integers(0, 16, (128, 8)).astype(np.uint8)
    words = nibbles.pack(jnp.asarray(codes))
    np.testing.assert_array_equal(nibbles.unpack(words), codes)
    first, _ = nibbles.bytes_of(words)
    byte = np.asarray(first)[3, 5] >> 16 & 0xFF  # sublane 3, byte 2: row 14
    assert byte == (codes[14, 5] & 7) << 1 | (codes[14, 5] & 8) << 4


@pytest.mark.parametrize(
    ("target", "number_format"), [("v5e", DIVIDED), ("v6e", NVFP4), ("v7x", NVFP4)]
)
def test_every_code_with_every_scale_of_e4m3(target, number_format, on):
    on(target)
    scale = np.random.default_rng(5).permuted(np.tile(np.arange(127), (130, 1)), axis=1)[:, :32]
    factor = np.float32([0.0037]).view(np.uint32)
    weight = weight_of(
        number_format,
        code=every_code(130, 16, 32),
        scale=scale.astype(np.uint8),
        tensor_scale=factor.reshape(1, 1),
    )
    w = kernels.to_resident(weight, "tpu")
    assert w.layout == "tpu_nvfp4"
    expect_decoded(w, weight, jnp.float32 if target == "v5e" else jnp.bfloat16)
    few = {"v5e": 1, "v6e": 7, "v7x": 3}[target]
    for rows in (few, 16):
        expect_product(w, weight, rows)
    one = weight_of(NVFP4, **{**weight.codes, "tensor_scale": np.uint32([[0x3F800000]])})
    w = kernels.to_resident(one, "tpu")
    for rows in (few, 16):
        expect_exact(w, one, slice(rows))


@pytest.mark.parametrize("code", [0x7F, 0x81, 0xFF])
def test_scales_with_a_sign_or_nan_take_the_reference(code):
    weight = gaussian((64, 64), NVFP4)
    scale = np.array(weight.codes["scale"])
    scale[3, 1] = code
    weight = replace(weight, codes={**weight.codes, "scale": jnp.asarray(scale)})
    assert kernels.to_resident(weight, "tpu").backend == "reference"


@pytest.mark.parametrize("number_format", [MXFP4, NVFP4], ids=["MXFP4", "NVFP4"])
def test_steps_along_k_and_loops_over_columns(number_format, monkeypatch):
    """Small matrices, taken for large ones; the last tile of columns sticks out."""
    for name, value in (("MOST_K", 512), ("WIDE", 128), ("STEP", 512 * 512)):
        monkeypatch.setattr(columns, name, value)
    weight = gaussian((640, 1000), number_format)
    w = kernels.to_resident(weight, "tpu")
    plan = fused.kernels_of(w).plan(w, 3, TPUS["v6e"])
    assert plan.grid == (2, 2)
    expect_product(w, weight)
