"""The Hopper layout of scaled codes: bits of the reference, in plain JAX and in interpret mode."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy import formats, jax_internals
from jentropy import pallas_kernels as kernels
from jentropy.formats import WHOLE, QuantizedTensor
from jentropy.pallas_kernels import backends, reference, targets
from jentropy.pallas_kernels.fused import kernels_of
from jentropy.pallas_kernels.gpu_scaled.elements import ELEMENTS
from jentropy.pallas_kernels.hopper import fragments
from jentropy.pallas_kernels.targets import GPUS
from jentropy.pallas_kernels.variants import VARIANTS, abstract_weight, weight_of, with_blocks

from .compilers import EVERYTHING

pytestmark = pytest.mark.usefixtures("compiled_quickly")

NAME = "gpu_scaled"
N, K = 70, 140  # of weights as they are stored: ragged in every tile
HELD = [
    n for n, v in VARIANTS.items() if n != "BF16" and backends.has_kernels("gpu", v.number_format)
]
# Every kind of element, scale and zero point once.
SOME = ("MXFP8", "NVFP4", "INT4 g32 zeros", "FP8")
INTERPRETED = ("NVFP4", "INT4 g32 zeros")
MORE = (
    "MXFP8",
    "UINT8 row",
    "FP8 row",
    "MXFP4",
    "INT8 row",
    "INT4 g128",
    "INT4 row zeros",
    "E5M2 row",
    "INT4 g128 FP32",
)
E8M0_ONE = 127


@pytest.fixture
def interpret():
    """Interpret mode with everything it can look for."""
    return jax_internals.gpu_interpreter(detect_races=True, uninitialized_memory="nan")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A GPU of two multiprocessors: interpreted blocks of threads are slow."""
    small = replace(GPUS["h200"], multiprocessors=2)
    monkeypatch.setattr(targets, "current_gpu", lambda: small)
    with jax_internals.gpu_interpreter_compiles_once():
        yield


def values(shape=(N, K), seed=0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.02
    made[..., 3, :] *= 1e-3
    made[..., 5, :] = 0
    made[..., 7, :40] = 0
    return made


def weight(name: str, shape=(N, K), **options) -> kernels.ResidentTensor:
    w = weight_of(VARIANTS[name].number_format, jnp.asarray(values(shape)))
    packed = kernels.to_resident(w, "gpu", **options)
    assert packed.layout == NAME
    return packed


def with_codes(number_format: formats.Format, **changes) -> QuantizedTensor:
    """Weights of a format, some of their codes and parameters others."""
    codes = formats.quantize(jnp.asarray(values()), number_format)
    arrays = {name: np.array(array) for name, array in codes.items()}
    for name, some in changes.items():
        arrays[name].reshape(-1)[: len(some)] = some
    made = {name: jnp.asarray(array) for name, array in arrays.items()}
    return QuantizedTensor(number_format=number_format, codes=made)


def bits(array) -> np.ndarray:
    return np.asarray(array).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def close(y, x, w):
    x, w = (np.asarray(a, np.float64) for a in (x, w))
    error = np.abs(np.asarray(y, np.float64) - x @ w.T)
    assert (error <= 2.0**-20 * np.abs(x) @ np.abs(w).T + 1e-30).all()


@pytest.mark.parametrize("name", list(ELEMENTS))
def test_codes_come_back_and_are_placed_as_numbers(name):
    """Every code in every place: the arithmetic that kernels do in registers, in float64."""
    element, number_format = ELEMENTS[name], formats.ELEMENTS[name]
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.arange(1 << 14) % (1 << number_format.code_bits))
    pairs = fragments.pairs(jnp.asarray(codes.reshape(4, -1, 2)))
    words = element.pack(list(pairs))
    assert len(words) == element.words
    np.testing.assert_array_equal(jnp.stack(element.codes(words)), pairs)
    placed, less = element.place(words)
    numbers = as_numbers(placed) * 2.0**element.power
    if less is not None:
        numbers -= as_numbers(less)
    if element.tiny:
        expected = np.asarray(number_format.decode(codes.astype(np.uint8)), np.float64)
        finite = np.isfinite(expected)
        got = numbers.reshape(-1)
        np.testing.assert_array_equal(got[finite], expected[finite])
        np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(expected[finite]))
    else:
        wrapped = codes.astype(np.int8) if number_format.code_bits == 8 else codes
        np.testing.assert_array_equal(numbers.reshape(-1) * 2.0**element.unit, wrapped)


def as_numbers(pairs) -> np.ndarray:
    """bfloat16 pairs in float64, subnormal ones too."""
    halves = np.asarray(fragments.halves(jnp.stack(pairs))).astype(np.uint32)
    return (halves << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", HELD if EVERYTHING else SOME)
def test_numbers_are_those_of_the_reference(name):
    packed = weight(name)
    plain = kernels.to_resident(weight_of(VARIANTS[name].number_format, jnp.asarray(values())))
    for dtype in (jnp.float32, jnp.bfloat16):
        expected = bits(kernels.decode(plain, dtype))
        np.testing.assert_array_equal(bits(reference.decode(packed, dtype)), expected)
    taken = kernels.take_rows(packed, jnp.array([N - 1, 0, 64, 5])).astype(jnp.bfloat16)
    np.testing.assert_array_equal(bits(taken), expected[[N - 1, 0, 64, 5]])


@pytest.mark.parametrize("name", HELD if EVERYTHING else SOME)
def test_abstract_weights_are_what_to_resident_makes(name):
    made = kernels.to_resident(abstract_weight(VARIANTS[name].number_format, (N, K)), "gpu")
    packed = weight(name)
    assert (made.layout, made.options, made.shape) == (NAME, packed.options, packed.shape)
    described = [
        {key: (array.shape, array.dtype) for key, array in w.arrays.items()} for w in (made, packed)
    ]
    assert described[0] == described[1]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("FP8 row", {"code": [0x7F]}),  # NaN
        ("E5M2 row", {"code": [0x7C]}),  # Inf
        ("FP8 row", {"scale": [0x7F800000]}),
        ("MXFP8", {"scale": [255]}),  # NaN
        ("MXFP4", {"scale": [254, 2], "code": [1] * 64}),  # too far from each other
        ("NVFP4", {"scale": [0x7F]}),
        ("NVFP4", {"scale": [0x80]}),
        ("NVFP4", {"tensor_scale": [0x7F000000]}),
    ],
)
def test_what_kernels_cannot_hold_rests_in_the_reference_layout(name, changes):
    plain = with_codes(VARIANTS[name].number_format, **changes)
    packed = kernels.to_resident(plain, "gpu")
    assert packed.backend == "reference"
    expected = kernels.to_resident(plain, "reference")
    np.testing.assert_array_equal(bits(kernels.decode(packed)), bits(kernels.decode(expected)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("MXFP4", {"scale": [254, 250, 240, 230, 220], "code": [1, 9, 15] * 20}),
        ("MXFP8", {"scale": [200, 190, 180, 170, 160], "code": [0x80, 1, 0x7E, 0x81]}),
        ("MXFP4", {"scale": [0], "code": [8, 0] * 16}),  # zeros alone
        ("NVFP4", {"scale": [0, 1, 0x7E], "code": [9, 3, 8] * 20}),
        ("FP8 row", {"code": np.delete(np.arange(256), [127, 255])}),
        ("INT4 g128 zeros", {"code": np.arange(128) % 16, "zero_point": np.arange(16)}),
    ],
)
def test_extreme_scales_and_all_codes(name, changes):
    plain = with_codes(VARIANTS[name].number_format, **changes)
    packed = kernels.to_resident(plain, "gpu")
    assert packed.layout == NAME
    for dtype in (jnp.float32, jnp.bfloat16):
        expected = kernels.decode(kernels.to_resident(plain, "reference"), dtype)
        np.testing.assert_array_equal(bits(reference.decode(packed, dtype)), bits(expected))


def test_groups_that_no_kernel_reads():
    for block in ((16,), (48,)):
        number_format = with_blocks(formats.INT4_GROUP, block)
        packed = kernels.to_resident(with_codes(number_format), "gpu")
        assert packed.backend == "reference"
    number_format = formats.MXFP4.with_parameter("scale", block=(1, WHOLE))
    assert kernels.to_resident(with_codes(number_format), "gpu").layout == NAME


@pytest.mark.parametrize("name", INTERPRETED + MORE * EVERYTHING)
def test_products_and_dense_weights(name, interpret):
    w = weight(name)
    dense = reference.decode(w, jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, K)), jnp.bfloat16)
    y = jentropy.matmul(x, w, transpose_w=True, out_dtype=jnp.float32, interpret=interpret)
    close(y, x, dense)
    decoded = kernels.decode(w, jnp.float32, interpret=interpret)
    np.testing.assert_array_equal(bits(decoded), bits(dense))


@pytest.mark.parametrize("name", HELD if EVERYTHING else ("INT4 g128 zeros",))
def test_groups_of_rows(name):
    w, sizes = weight(name, (3, N, K)), (2, 0, 9)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((11, K)), jnp.bfloat16)
    options = {"transpose_w": True, "out_dtype": jnp.float32, "interpret": True}
    y = jentropy.grouped_matmul(x, w, jnp.asarray(sizes), **options)
    close(y[:2], x[:2], reference.decode(w[0], jnp.float32))
    close(y[2:], x[2:], reference.decode(w[2], jnp.float32))


def test_gradient_vmap_and_scan_with_64_bits(request):
    """Of a stack that is read where it lies; JAX's own integers are wider."""
    request.addfinalizer(lambda: jax.config.update("jax_enable_x64", False))
    stacked = weight("INT4 g128", (2, N, 128))
    dense = np.asarray(reference.decode(stacked[1], jnp.float32))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 128)), jnp.float32)
    jax.config.update("jax_enable_x64", True)
    product = partial(jentropy.matmul, transpose_w=True, interpret=True)

    def products(x):
        rows_of = lambda i: jax.vmap(lambda row: product(row[None], stacked[i])[0])(x)  # noqa: E731
        return jax.lax.map(rows_of, jnp.arange(2))

    y, pull = jax.vjp(products, x)
    close(y[1], x.astype(jnp.bfloat16), dense)
    (gradient,) = pull(jnp.zeros_like(y).at[1].set(1))
    np.testing.assert_allclose(np.asarray(gradient)[0], dense.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HELD if EVERYTHING else ("INT4 g32 zeros",))
def test_parts_of_a_mesh_are_parts_of_the_matrix(name):
    w = weight(name, (256, 512))
    whole = np.asarray(reference.decode(w, jnp.float32))
    for axis, expected in (("outputs", whole[128:]), ("inputs", whole[:, 256:])):
        specs = w.partition_specs(**{axis: "d"}).arrays

        def second(name, array, specs=specs):
            for i, along in enumerate(specs[name]):
                array = array if along is None else jnp.split(array, 2, axis=i)[1]
            return array

        part = replace(w, arrays={name: second(name, array) for name, array in w.arrays.items()})
        np.testing.assert_array_equal(bits(reference.decode(part, jnp.float32)), bits(expected))


def test_plans_know_what_registers_hold():
    target = GPUS["h200"]
    for name, most in (("MXFP4", 256), ("INT4 g128", 128), ("INT4 g32", 24)):
        w = kernels.to_resident(abstract_weight(VARIANTS[name].number_format, (4096, 4096)), "gpu")
        made = kernels_of(w).plan(w, 256, target)
        assert (made.m, made.passes) == (most, -(-256 // most))
        assert not kernels_of(w).plan(w, target.fused_rows + 1, target).fused
        eighths = made.traits.unit_bytes * 8 / 128**2
        assert eighths == pytest.approx(w.bits_per_weight, rel=0.01)


def test_tall_tiles_as_far_as_registers_hold_sums():
    """Of groups of 128, both halves' sums: with more rows of x in short steps only."""
    number_format = VARIANTS["INT4 g128"].number_format
    w = kernels.to_resident(abstract_weight(number_format, (28672, 4096)), "gpu")
    configs = [kernels_of(w).plan(w, m, GPUS["h200"]).config for m in (16, 48, 64, 72)]
    assert [config.height for config in configs] == [2, 2, 2, 1]
    assert [config.tile_k for config in configs[:3]] == [256, 256, 128]
