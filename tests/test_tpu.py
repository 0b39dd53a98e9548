"""TPU layouts and kernels in interpret mode: bits of the reference; races are looked for.

Memory is NaN until it is written, and a copy arrives when it is waited for, so a kernel that reads
too early or too much gives NaN.

Most of the time is the compiler's: programs are jitted once for weights alike, and what kernels of
several TPUs come to is run once where it is the same program.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import jentropy
from jentropy import pallas_kernels as kernels
from jentropy.errors import InputError
from jentropy.formats import (
    INT4_GROUP,
    MXFP4,
    MXFP8,
    NVFP4,
    QuantizedTensor,
    dequantize,
    quantize,
)
from jentropy.pallas_kernels import backends, fused, reference, targets
from jentropy.pallas_kernels.targets import TPUS
from jentropy.pallas_kernels.tpu.crossover import FUSED_ROWS
from jentropy.pallas_kernels.tpu.plan import MOST_ROWS, make_plan
from jentropy.pallas_kernels.tpu_scaled import blocks as scaled_blocks
from jentropy.pallas_kernels.tpu_scaled import plan as scaled_plan
from jentropy.pallas_kernels.tpu_window12 import layout as window12_layout
from jentropy.pallas_kernels.variants import VARIANTS, with_blocks

from . import interpreted
from .conftest import same_bits, same_tree

pytestmark = pytest.mark.usefixtures("compiled_quickly")
INTERPRET = pltpu.InterpretParams(
    dma_execution_mode="on_wait", detect_races=True, uninitialized_memory="nan"
)
FORMATS = {
    name: variant.number_format
    for name, variant in VARIANTS.items()
    if backends.has_kernels("tpu", variant.number_format)
}
N, K = 140, 500  # of weights as they are stored: ragged in every tile
PLAIN = jax.jit(reference.decode, static_argnums=1)
every_format = pytest.mark.parametrize("name", FORMATS)
each_target = pytest.mark.parametrize("target", TPUS)


@pytest.fixture(autouse=True)
def no_races(capfd):
    """The interpreter prints the races that it finds."""
    yield
    assert "RACE DETECTED" not in "".join(capfd.readouterr())


@pytest.fixture
def on(monkeypatch):
    """Takes this process for a TPU of a generation."""
    return lambda name: monkeypatch.setattr(targets, "current_tpu", lambda: TPUS[name])


def weights(shape, seed=0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.02
    values[..., 3, :] *= 1e-4  # a row of small ones
    values[..., 5, :] = 0
    return values


@functools.cache
def quantized(name: str, shape=(N, K), seed=0) -> QuantizedTensor:
    """Weights of a format."""
    number_format = FORMATS[name]
    codes = quantize(jnp.asarray(weights(shape, seed)), number_format)
    return QuantizedTensor(number_format=number_format, codes=codes)


def with_all_codes(name: str) -> QuantizedTensor:
    """Weights that have every code of their element: NaN, Inf, -0 and subnormals.

    Of BF16 every 256th: escapes are slow in interpret mode.
    """
    weight, rng = quantized(name), np.random.default_rng(1)
    bits, dtype = weight.number_format.element.code_bits, weight.codes["code"].dtype
    codes = rng.permutation(N * K) % (1 << bits)
    if name == "BF16":
        codes = np.array(weight.codes["code"]).reshape(-1)
        codes[rng.permutation(codes.size)[:256]] = np.arange(0, 1 << 16, 256) + 129
    code = jnp.asarray(codes.reshape(N, K), dtype)
    return QuantizedTensor(number_format=weight.number_format, codes={**weight.codes, "code": code})


def inputs(shape, dtype=jnp.bfloat16, seed=1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def resident(weight, **options) -> kernels.ResidentTensor:
    """On backend tpu; the kernels' layout, not another's."""
    w = kernels.to_resident(weight, "tpu", **options)
    assert isinstance(w, kernels.ResidentTensor)
    assert w.backend == "tpu"
    return w


def multiply(x, w, **options) -> jax.Array:
    return interpreted.multiply(x, w, **{"interpret": INTERPRET, **options})


def decode(w, dtype=None, interpret=INTERPRET) -> jax.Array:
    return interpreted.decode(w, dtype, interpret)


def bits(array) -> np.ndarray:
    return np.asarray(array).view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


@every_format
@pytest.mark.parametrize(
    ("reduce_axis", "dtype"), [(-1, jnp.float32), (-1, jnp.bfloat16), (-2, None)]
)
def test_decode_gives_every_codes_number(name, reduce_axis, dtype):
    """Over the other axis in the dtype that tells all numbers apart."""
    dtype = dtype or (jnp.bfloat16 if name == "BF16" else jnp.float32)
    weight = with_all_codes(name)
    w = kernels.to_resident(weight, "tpu", reduce_axis=reduce_axis)
    expected = dequantize(weight.number_format, weight.codes, dtype)
    if name == "BF16":  # NaN payloads too, which a conversion to float32 may change
        dense = jax.lax.bitcast_convert_type(weight.codes["code"], jnp.bfloat16)
        expected = dense if dtype == jnp.bfloat16 else dense.astype(dtype)
    np.testing.assert_array_equal(bits(decode(w, dtype)), bits(expected))
    ids = jnp.array([[N - 1, 0], [3, 1000]])
    taken = kernels.take_rows(w, ids, dtype)
    np.testing.assert_array_equal(bits(taken), bits(expected[jnp.clip(ids, 0, N - 1)]))


def test_decode_of_every_bf16_code():
    codes = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    w = resident(jnp.asarray(codes.view(ml_dtypes.bfloat16)))
    np.testing.assert_array_equal(bits(decode(w)), codes)


K_BF16, N_BF16 = 520, 200  # a tile of 1024 rows; the last pair of columns' registers is ragged
WINDOW_BF16 = 15
ROW_EDGES = np.array([0, 1, 15, 16, 127, 128, 255, 256, 257, 383, 384, 511, 518, 519])
COLUMN_EDGES = np.array([0, 1, 127, 128, 199])


def with_escapes(case: str, window: int) -> np.ndarray:
    """uint16[N, K] codes: ordinary ones of exponents up to `window`, and some outside."""
    rng, shape = np.random.default_rng(2), (N_BF16, K_BF16)
    exponent = window - rng.integers(0, WINDOW_BF16, shape)
    codes = rng.integers(0, 1 << 7, shape) | exponent << 7 | rng.integers(0, 2, shape) << 15
    codes[:, 2::5] = rng.integers(0, 2, (N_BF16, K_BF16 // 5)) << 15  # zeros of both signs
    outside = np.where(rng.integers(0, 2, shape), codes & 0x807F, codes & 0x807F | 0xFE << 7) | 3
    where = np.zeros(shape, bool)
    match case:
        case "edges":
            where[np.ix_(COLUMN_EDGES, ROW_EDGES)] = True
        case "lower":
            where[::9, ::52] = True
        case "upper":
            where[::9, 1::52] = True
        case "pairs":
            where[::9, ::52] = where[::9, 1::52] = True
        case "register":
            where[:32, 32:48] = True
        case "odd":
            where[5, -2] = where[7, -3] = True
            return np.where(where, outside, codes).astype(np.uint16)[:, :-1]
        case "all":  # subnormals: a window would hold any other exponent
            return (codes[:16, :32] & 0x807F | 1).astype(np.uint16)
    return np.where(where, outside, codes).astype(np.uint16)


ESCAPES = {
    "none": 0,
    "edges": ROW_EDGES.size * COLUMN_EDGES.size,
    "lower": 23 * 10,
    "upper": 23 * 10,
    "pairs": 2 * 23 * 10,
    "register": 32 * 16,
    "odd": 2,
    "all": 16 * 32,
}


@pytest.mark.parametrize(
    "cases", [["edges"], ["pairs"], ["odd"], ["all"], ["none", "lower", "upper", "register"]]
)
def test_escapes_are_put_back_wherever_they_are(cases):
    """One matrix, or a stack, whose lists are as long as the longest."""
    each = np.stack([with_escapes(case, 126) for case in cases])
    codes = each if len(cases) > 1 else each[0]
    w = resident(jnp.asarray(codes.view(ml_dtypes.bfloat16)))
    np.testing.assert_array_equal(bits(decode(w)), codes)
    for at, case in enumerate(cases):
        one = w[at] if w.stack else w
        alone = jax.tree.map(lambda a, at=at: a[at], w) if w.stack else w
        assert int(alone.arrays["counts"].sum()) == ESCAPES[case]
        np.testing.assert_array_equal(bits(PLAIN(alone, jnp.bfloat16)), each[at])
        numbers = each[at].view(ml_dtypes.bfloat16).astype(np.float32).T
        here = np.r_[:16, len(numbers) - 16 : len(numbers)]
        x = jnp.eye(len(numbers), dtype=jnp.bfloat16)[here]
        y = multiply(x, one, transpose_w=True, out_dtype=jnp.float32)
        normal = np.abs(numbers[here]) >= 2.0**-126
        np.testing.assert_array_equal(np.asarray(y)[normal], numbers[here][normal])


def test_decode_of_numbers_too_large_for_one_power_of_two():
    codes = with_escapes("edges", 253)
    w = resident(jnp.asarray(codes.view(ml_dtypes.bfloat16)))
    assert w.option("shift") == (253 - WINDOW_BF16) // 2
    np.testing.assert_array_equal(bits(decode(w)), codes)


@pytest.mark.parametrize(("low", "high"), [(0, 254), (1, 255), (1, 256)])
def test_scales_of_every_power(low, high):
    """E8M0 has no layout only where 2^-127 and 2^127 are both there."""
    weight = quantized("MXFP8", (64, 512))
    scale = np.random.default_rng(3).integers(low, high, weight.codes["scale"].shape)
    scale[0, 0], scale[1, 0] = low, high - 1
    code = jnp.asarray(np.random.default_rng(4).integers(0, 0x39, (64, 512)), jnp.uint8)  # <= 1
    weight = replace(weight, codes={"code": code, "scale": jnp.asarray(scale, jnp.uint8)})
    w = resident(weight)
    expected = dequantize(MXFP8, weight.codes, jnp.float32)
    np.testing.assert_array_equal(bits(decode(w, jnp.float32)), bits(expected))
    y = np.asarray(multiply(jnp.eye(512, dtype=jnp.float32), w, transpose_w=True))
    expected = np.asarray(expected).T
    np.testing.assert_array_equal(np.isnan(y).all(0), np.isnan(expected).any(0))
    sound = (np.abs(expected) >= 2.0**-120) & ~np.isnan(expected).any(0)
    np.testing.assert_array_equal(y[sound], expected[sound])
    both = scale.copy()
    both[0, 0], both[0, 1] = 0, 254
    weight = replace(weight, codes={**weight.codes, "scale": jnp.asarray(both, jnp.uint8)})
    assert kernels.to_resident(weight, "tpu").backend == "reference"


ROWS = {"v5e": (5, 16, 120), "v6e": (16, 120), "v7x": (16,)}  # of x, before decoding pays


def rows_of_each_kind(count: int) -> tuple[np.ndarray, slice]:
    """Rows of x: of the identity, ordinary ones that are bfloat16, one that is not; and the second.

    The first ones are the rest.
    """
    rng, ordinary = np.random.default_rng(count), count // 4 + 1
    picked = rng.permutation(np.arange(1, K))[: count - ordinary - 2]
    of_identity = np.eye(K, dtype=np.float32)[[0, *picked]]
    numbers = np.asarray(inputs((ordinary, K)), np.float32)
    x = np.concatenate([of_identity, numbers, numbers[:1] * np.float32(1 + 2.0**-12)])
    return x, slice(len(of_identity), count - 1)


@every_format
def test_products_have_the_weights_and_are_close_to_those_in_float64(name, on):
    """Rows of the identity give the weights themselves."""
    weight, programs = quantized(name), set()
    dense = np.asarray(weight.dequantize())
    for target in ROWS:
        on(target)
        w = resident(weight)
        plan = partial(fused.kernels_of(w).plan, w, target=TPUS[target])
        for rows in {plan(rows).m: rows for rows in ROWS[target]}.values():
            x, ordinary = rows_of_each_kind(rows)
            arguments = interpreted.arguments(
                jnp.asarray(x), w, interpret=INTERPRET, transpose_w=True, out_dtype=jnp.float32
            )
            program = str(interpreted.product.trace(**arguments).jaxpr)
            if program in programs:
                continue
            programs.add(program)
            assert plan(rows).fused
            expect_products(name, np.asarray(interpreted.product(**arguments)), x, dense, ordinary)
    assert len(programs) >= 2


def expect_products(name, y, x, dense, ordinary) -> None:
    """Whether y is x times the transpose of a dense matrix."""
    here = dense.T[x[: ordinary.start].argmax(1)]
    normal = np.abs(here) >= 2.0**-126
    assert normal.mean() > 0.5
    if name == "NVFP4":  # its numbers are rounded twice, products of them once
        np.testing.assert_allclose(y[: len(here)][normal], here[normal], rtol=1.2e-7)
    else:
        np.testing.assert_array_equal(y[: len(here)][normal], here[normal])
    x, w = np.asarray(x, np.float64), np.asarray(dense, np.float64).T
    # Integers are multiplied with their offset: as if they were eight times as large, at the most.
    factor = 8 if name.startswith("INT4") else 1
    sizes = np.linalg.norm(x[ordinary], axis=1)[:, None] * np.linalg.norm(w, axis=0)
    error = np.abs(y - x @ w)
    np.testing.assert_array_less(error[ordinary], factor * 4e-7 * sizes.max() + 1e-30)
    scale = np.abs(x[-1] @ w).max()
    assert 1e-5 * scale < error[-1].max() < 1e-2 * scale, "x is rounded to bfloat16"


@pytest.mark.parametrize(
    ("name", "target", "rows"),
    [
        ("BF16", "v5e", 1100),
        ("FP8 256x128", "v5e", 700),
        ("MXFP8", "v7x", 300),
        ("INT4 g32", "v7x", 300),
        ("INT4 g128 zeros", "v6e", 300),
    ],
)
def test_many_tiles(name, target, rows, on, monkeypatch):
    """Small ones, since what they unroll to compiles for long."""
    for layout in (window12_layout, scaled_blocks):
        monkeypatch.setattr(layout, "TILE_ROWS", (512,))
    monkeypatch.setattr(scaled_plan, "TILE_COLUMNS", 512 if name == "FP8 256x128" else 128)
    monkeypatch.setattr(scaled_plan, "DECODED_COLUMNS", 128)
    on(target)
    weight = quantized(name, (rows, 1000))
    w, x = resident(weight), inputs((3, 1000))
    columns, steps = fused.kernels_of(w).plan(w, 3, TPUS[target]).grid
    assert columns >= 2
    assert steps == 2
    y = multiply(x, w, transpose_w=True, out_dtype=jnp.float32)
    expected = np.asarray(x, np.float64) @ np.asarray(weight.dequantize(), np.float64).T
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.abs(expected).max())
    decoded = decode(w, jnp.float32)
    np.testing.assert_array_equal(bits(decoded), bits(weight.dequantize(jnp.float32)))


@each_target
def test_more_rows_than_a_pass_takes(target, on):
    on(target)
    weight, rows = quantized("FP8 128x128"), MOST_ROWS + 5
    x = inputs((rows, K))
    y = multiply(x, resident(weight), transpose_w=True, out_dtype=jnp.float32)
    few = rows <= FUSED_ROWS[target]["FP8 128x128"]
    w = weight.dequantize(jnp.float32 if few else jnp.bfloat16)
    expected = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(y, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["BF16", "FP8 row", "E5M2 row", "FP8 128x128", "MXFP8"])
def test_nan_and_inf_come_out_as_from_the_dense_product(name):
    weight = quantized(name)
    special = {
        "BF16": [0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x7F81],
        "E5M2 row": [0x7C, 0xFC, 0x7D, 0xFF],
    }
    code = np.array(weight.codes["code"])
    for i, value in enumerate(special.get(name, [0x7F, 0xFF])):
        code[2 * i, 11 * i] = value
    code[0, K - 1] = special.get(name, [0x7F])[-1]
    weight = replace(weight, codes={**weight.codes, "code": jnp.asarray(code)})
    x = inputs((17, K))
    y = multiply(x, resident(weight), transpose_w=True, out_dtype=jnp.float32)
    dense = jentropy.matmul(x, weight.dequantize(jnp.float32), transpose_w=True)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(dense))
    np.testing.assert_array_equal(np.isposinf(y), np.isposinf(dense))
    np.testing.assert_array_equal(np.isneginf(y), np.isneginf(dense))
    assert np.isnan(np.asarray(y)).any()
    assert np.isfinite(np.asarray(y)).any()


@every_format
@pytest.mark.parametrize(("transpose_w", "reduce_axis"), [(False, -1), (False, -2), (True, -2)])
def test_both_products_of_both_layouts(name, transpose_w, reduce_axis):
    """Three of four: the first has a test of its own."""
    weight = quantized(name, (160, 192))
    w = kernels.to_resident(weight, "tpu", reduce_axis=reduce_axis)
    x = inputs((2, 3, 192 if transpose_w else 160))
    y = multiply(x, w, transpose_w=transpose_w, out_dtype=jnp.float32)
    dense = np.asarray(weight.dequantize(), np.float64)
    expected = np.asarray(x, np.float64) @ (dense.T if transpose_w else dense)
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["BF16", "FP8 128x128", "INT4 g128 zeros"])
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float32], ids=["x-bf16", "x-f32"])
@pytest.mark.parametrize("out_dtype", [None, jnp.bfloat16, jnp.float32], ids=["x", "bf16", "f32"])
def test_dtypes(name, x_dtype, out_dtype):
    weight, x = quantized(name), inputs((4, K), x_dtype)
    y = multiply(x, resident(weight), transpose_w=True, out_dtype=out_dtype)
    assert y.dtype == (x_dtype if out_dtype is None else out_dtype)
    expected = np.asarray(x, np.float64) @ np.asarray(weight.dequantize(), np.float64).T
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, atol=8e-3 * np.abs(expected).max()
    )


@every_format
def test_full_precision_keeps_float32(name):
    weight, x = quantized(name), inputs((5, K), jnp.float32)
    w = resident(weight)
    expected = np.asarray(x, np.float64) @ np.asarray(weight.dequantize(), np.float64).T
    y = multiply(x, w, transpose_w=True, precision="highest")
    assert np.abs(y - expected).max() < 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["BF16", "FP8 row", "FP8 128x128", "MXFP8", "INT4 g128"])
def test_gradients_are_those_of_the_dense_product(name):
    weight, x = quantized(name, (160, 192)), inputs((6, 192), jnp.float32)
    w = resident(weight)
    target = inputs((6, 160), jnp.float32, seed=2)

    def loss(x, w):
        y = jentropy.matmul(x, w, transpose_w=True, interpret=INTERPRET, precision="highest")
        return ((y - target) ** 2).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(x, w)
    dense = jnp.asarray(weight.dequantize(jnp.float32))
    expected, expected_gradient = jax.value_and_grad(
        lambda x: ((jnp.dot(x, dense.T, precision="highest") - target) ** 2).sum()
    )(x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(
        gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max()
    )


def test_adapters_train_over_a_compressed_base():
    w, x = resident(quantized("MXFP8", (96, 128))), inputs((8, 128), jnp.float32)
    a, b = inputs((4, 128), jnp.float32, 3), jnp.zeros((96, 4))

    def loss(adapter):
        a, b = adapter
        hidden = jentropy.matmul(x, w, transpose_w=True, interpret=INTERPRET) + x @ a.T @ b.T
        return (jentropy.matmul(hidden, w, interpret=INTERPRET) ** 2).mean()

    gradients = jax.jit(jax.grad(loss))((a, b))
    assert all(np.isfinite(g).all() for g in gradients)
    assert np.abs(gradients[1]).max() > 0


@pytest.mark.parametrize("name", ["BF16", "FP8 128x128", "INT4 g128 zeros"])
def test_a_batch_of_x_reads_the_weight_once(name):
    w, x = resident(quantized(name)), inputs((3, 4, K))
    options = {"transpose_w": True, "interpret": INTERPRET}
    call = jax.jit(jax.vmap(lambda x: jentropy.matmul(x, w, **options)))
    assert same_bits(call(x), multiply(x, w, transpose_w=True))
    text = str(call.trace(x).jaxpr)
    assert text.count("pallas_call") == 1
    assert "scan" not in text
    loss = jax.grad(lambda x: jentropy.matmul(x, w, **options).sum())
    gradient = jax.jit(jax.vmap(loss))(x)
    assert gradient.shape == x.shape


@pytest.mark.parametrize("name", ["BF16", "FP8 128x128", "INT4 g128 zeros"])
def test_stacked_layers(name):
    weight = quantized(name, (3, 192, 192))
    w = resident(weight)
    assert w.shape == (3, 192, 192)
    expected = dequantize(weight.number_format, weight.codes, jnp.float32)
    assert same_bits(decode(w, jnp.float32), expected)
    x = inputs((2, 192), jnp.float32)

    def layer(x, w):
        y = jentropy.matmul(x, w, transpose_w=True, interpret=INTERPRET, precision="highest")
        return y, y

    _, scanned = jax.jit(lambda x, w: jax.lax.scan(layer, x, w))(x, w)
    in_place = jax.jit(lambda x, w: jax.lax.scan(lambda x, i: layer(x, w[i]), x, jnp.arange(3)))
    assert same_bits(in_place(x, w)[1], scanned)
    mapped = jax.jit(jax.vmap(lambda w: layer(x, w)[0]))(w)
    here = x
    for i, dense in enumerate(expected):
        np.testing.assert_allclose(
            mapped[i], x @ dense.T, atol=1e-5 * float(jnp.abs(x @ dense.T).max())
        )
        here = here @ dense.T
        np.testing.assert_allclose(scanned[i], here, atol=1e-5 * float(jnp.abs(here).max()))


@pytest.mark.parametrize("name", ["BF16", "FP8 128x128", "MXFP8", "INT4 g32 zeros"])
def test_a_matrix_is_read_out_of_its_stack(name):
    weight = quantized(name, (2, 2, 128, 192))
    w, x = resident(weight), inputs((3, 192))
    at = 1, 0
    copy = jax.tree.map(lambda a: a[at], w)
    own = w[at]
    assert own.shape == copy.shape == (128, 192)
    assert own.nbytes == copy.nbytes
    assert own.backend == copy.backend == "tpu"
    multiply = partial(jentropy.matmul, transpose_w=True, interpret=INTERPRET)

    @jax.jit
    def run(x, w, cotangent):
        y, back = jax.vjp(partial(multiply, w=w), x)  # back by the other product
        return y, back(cotangent), kernels.decode(w, jnp.float32, interpret=INTERPRET)

    cotangent = inputs((3, 128), seed=2)
    assert same_tree(run(x, own, cotangent), run(x, copy, cotangent))


def test_the_trial_of_a_default_backend_passes():
    assert backends.trouble("tpu", True) == ""


SHARDED = """
import functools
import jax, jax.numpy as jnp, numpy as np, jentropy
from jax.sharding import Mesh, PartitionSpec as P
from jentropy import formats, pallas_kernels as kernels
from jentropy.formats import FP8_BLOCK, QuantizedTensor, quantize
from jentropy.pallas_kernels.tpu_scaled import blocks
from jentropy.pallas_kernels.tpu_window12 import layout

jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
blocks.TILE_ROWS = layout.TILE_ROWS = (512,)
mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
rng = np.random.default_rng(0)
n, k = 2048, 1024
dense = rng.standard_normal((n, k)).astype(np.float32) * 0.02
x = jnp.asarray(rng.standard_normal((4, k)), jnp.bfloat16)
for number_format in (formats.FORMATS["BF16"], FP8_BLOCK):
    weight = QuantizedTensor(
        number_format=number_format, codes=quantize(jnp.asarray(dense), number_format)
    )
    w = kernels.to_resident(weight, "tpu")
    whole = jentropy.matmul(x, w, transpose_w=True, out_dtype=jnp.float32, interpret="hlo")
    product = functools.partial(
        jentropy.matmul, transpose_w=True, out_dtype=jnp.float32, interpret="hlo"
    )
    specs = w.partition_specs(outputs="d")
    by_outputs = jax.shard_map(
        product, mesh=mesh, in_specs=(P(), specs), out_specs=P(None, "d"), check_vma=False
    )
    np.testing.assert_allclose(jax.jit(by_outputs)(x, w), whole, atol=1e-5)
    specs = w.partition_specs(inputs="d")
    by_inputs = jax.shard_map(
        lambda x, w: jax.lax.psum(product(x, w), "d"),
        mesh=mesh, in_specs=(P(None, "d"), specs), out_specs=P(), check_vma=False,
    )
    np.testing.assert_allclose(by_inputs(x, w), whole, atol=1e-5)
print("sharded")
"""


def test_shard_map_splits_the_outputs():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("sharded\n")


def test_what_has_no_kernel_rests_in_the_reference_layout():
    others = with_blocks(MXFP4, (16,)), with_blocks(INT4_GROUP, (48,))
    for number_format in (*others, NVFP4.with_parameter("scale", block=(24,))):
        codes = quantize(jnp.asarray(weights((64, 96))), number_format)
        weight = QuantizedTensor(number_format=number_format, codes=codes)
        w = kernels.to_resident(weight, "tpu")
        assert w.backend == "reference"
        x = inputs((2, 96), jnp.float32)
        y = jentropy.matmul(x, w, transpose_w=True, interpret=INTERPRET)
        expected = jentropy.matmul(x, weight.dequantize(jnp.float32), transpose_w=True)
        np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["FP8 128x128", "INT4 g128 zeros", "MXFP8"])
def test_resident_from_the_archive(name):
    weight = quantized(name)
    packed = jentropy.compress({"w": weight, "norm": jnp.ones(8, jnp.bfloat16)})
    w = kernels.to_resident(packed, "tpu")["w"]
    assert same_bits(
        decode(w),
        jnp.asarray(dequantize(weight.number_format, weight.codes, jnp.bfloat16)),
    )


DIALECTS = {  # tests/fixtures/quantised, and the layout of its weights on TPU
    "ct_fp8_tensor_w": "tpu_scaled",
    "ct_mxfp8": "tpu_scaled",
    "ct_w4a16_g32_asym": "tpu_scaled",
    "dsv3_fp8_block": "tpu_scaled",
    "hf_fp8_ue8m0": "tpu_scaled",
    "gptq_v1": "tpu_scaled",
    "gptq_v1_asym_act": "reference_codes",
    "awq_gemm": "tpu_scaled",
    "ao_e5m2": "tpu_scaled",
    "ct_mxfp4a16": "tpu_mxfp4",
    "dsv4": "tpu_mxfp4",
    "mo_mxfp4": "tpu_mxfp4",
    "ao_nvfp4": "tpu_nvfp4",
    "ct_nvfp4a16": "tpu_nvfp4",
    "mo_nvfp4": "tpu_nvfp4",
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_tools_wrote(fixtures, dialect):
    checkpoint = jentropy.open_checkpoint(fixtures / "quantised" / dialect)
    names = [n for n in checkpoint.names() if checkpoint.tensor(n).number_format.parameters]
    tensors = [checkpoint.tensor(name) for name in names]
    tensor = min(tensors, key=lambda tensor: tensor.number_format.element.code_bits)
    w = kernels.to_resident(tensor, "tpu")
    assert w.layout == DIALECTS[dialect]
    expected = tensor.dequantize()
    np.testing.assert_array_equal(decode(w, jnp.float32, "hlo"), expected)
    x = inputs((2, tensor.shape[1]), jnp.float32)
    y = multiply(x, w, transpose_w=True, interpret="hlo", precision="highest")
    expected = np.asarray(x, np.float64) @ expected.astype(np.float64).T
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


def test_sizes():
    """Bits per weight of a large matrix: what the format allocates, and little more."""
    allowed = {
        "BF16": 12.1,
        "FP8 128x128": 8.03,
        "MXFP8": 8.26,
        "INT4 g128": 4.13,
        "MXFP4": 4.5,
        "NVFP4": 4.52,
    }
    for name, most in allowed.items():
        w = resident(quantized(name, (2048, 2048)))
        assert w.bits_per_weight < most, name


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="reduce_axis"):
        kernels.to_resident(jnp.ones((8, 8), jnp.bfloat16), reduce_axis=0)


@each_target
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 4096, 4096), (16, 14336, 4096), (256, 4096, 28672), (8192, 2880, 2880)]
)
def test_plans_fit(target, m, k, n):
    limits = TPUS[target]
    made = make_plan(
        m=m,
        k=k,
        n=n,
        tile_k=2048,
        tile_n=1024,
        bits_per_weight=12,
        accumulators=2,
        target=limits,
        variant="BF16",
    )
    assert made.fused == (m <= FUSED_ROWS[target]["BF16"])
    assert made.m % 16 == 0
    assert made.passes * made.m >= m
    assert made.m <= MOST_ROWS
    assert made.grid[0] * made.tile_n >= n
    assert made.grid[1] * made.tile_k == made.k >= k
    assert made.vmem_bytes <= limits.vmem_bytes


def test_every_known_device_has_a_target():
    assert set(targets.KINDS.values()) == {*TPUS, *targets.GPUS}
