"""matmul over compressed weights: the bits of the dense product, by every route."""

from __future__ import annotations

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import FORMATS, FP8_ROW
from jentropy.pallas_kernels import backends, reference, row_blocks
from jentropy.pallas_kernels.variants import VARIANTS, weight_of

from .conftest import same_bits
from .test_window12 import bf16, special_weights

PLAIN = jax.jit(reference.decode, static_argnums=1)


def weights(shape, seed=0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) * 0.02, jnp.bfloat16)


def inputs(shape, dtype, seed=1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("transpose_w", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("out_dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("batch", "k", "n"), [((), 8, 1), ((1,), 33, 17), ((2, 3), 96, 130)])
def test_it_is_the_dense_product_bit_for_bit(batch, k, n, dtype, out_dtype, transpose_w):
    dense = weights((n, k) if transpose_w else (k, n))
    w, x = jentropy.to_resident(dense, "reference"), inputs((*batch, k), dtype)
    options = {"transpose_w": transpose_w, "out_dtype": out_dtype}
    y = jentropy.matmul(x, w, **options)
    assert y.shape == (*batch, n)
    assert y.dtype == (dtype if out_dtype is None else out_dtype)
    assert same_bits(y, jentropy.matmul(x, dense, **options))
    jitted = jax.jit(lambda x, w: jentropy.matmul(x, w, **options))
    assert same_bits(jitted(x, w), jitted(x, dense))


@pytest.mark.parametrize("transpose_w", [False, True])
def test_it_is_close_to_the_product_in_float64(transpose_w):
    dense = weights((64, 512) if transpose_w else (512, 64))
    x = inputs((5, 512), jnp.float32)
    y = jentropy.matmul(x, jentropy.to_resident(dense), transpose_w=transpose_w)
    w = np.asarray(dense, np.float64)
    expected = np.asarray(x, np.float64) @ (w.T if transpose_w else w)
    np.testing.assert_allclose(y, expected, atol=1e-6 * np.abs(expected).max())


def test_accumulation_is_float32():
    dense = jnp.full((4096, 1), 1 / 16, jnp.bfloat16)
    y = jentropy.matmul(jnp.ones((1, 4096), jnp.bfloat16), jentropy.to_resident(dense))
    assert float(y[0, 0]) == 256.0


def test_identity_gives_the_weights():
    codes = special_weights()
    codes[~np.isfinite(np.asarray(bf16(codes), np.float32))] = 0
    dense = bf16(codes)
    y = jentropy.matmul(jnp.eye(64, dtype=jnp.float32), jentropy.to_resident(dense))
    normal = (codes & 0x7F80) != 0
    np.testing.assert_array_equal(np.asarray(y)[normal], np.asarray(dense, np.float32)[normal])


def test_nan_and_inf_come_out_as_from_the_dense_product():
    dense = bf16(special_weights())
    x = inputs((4, 64), jnp.bfloat16)
    assert same_bits(jentropy.matmul(x, jentropy.to_resident(dense)), jentropy.matmul(x, dense))
    assert bool(jnp.isnan(jentropy.matmul(x, dense)).any())


def test_transformations():
    dense = weights((32, 24))
    w, x = jentropy.to_resident(dense), inputs((6, 3, 32), jnp.float32)
    np.testing.assert_allclose(
        jax.vmap(lambda row: jentropy.matmul(row, w))(x), jentropy.matmul(x, w), rtol=1e-6
    )
    loss = jax.jit(jax.grad(lambda x, w: jentropy.matmul(x, w).sum()))
    np.testing.assert_array_equal(loss(x, w), loss(x, dense))


@pytest.mark.parametrize(
    ("x", "w", "error"),
    [
        ((3, 31), (32, 24), "expected 32"),
        ((), (32, 24), "expected 32"),
        ((3, 32), (2, 32, 24), "two dimensions"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_shapes_that_do_not_fit_are_refused(x, w, error):
    weight = jentropy.to_resident(weights(w))
    with pytest.raises(InputError, match=error):
        jentropy.matmul(jnp.ones(x), weight)


@pytest.mark.usefixtures("unchecked")
def test_integers_are_refused_as_results_would_be_cut_to_them():
    w = jentropy.to_resident(weights((32, 24)))
    for x in (np.ones((3, 32), np.int32), [[1.0] * 32]):
        with pytest.raises(InputError, match=r"floating-point.*found (int32|list)"):
            jentropy.matmul(x, w)
        with pytest.raises(InputError, match=r"floating-point.*found (int32|list)"):
            jentropy.grouped_matmul(x, w, np.array([3]))


@pytest.mark.parametrize("backend", ["tpu", "gpu", "cuda"])
def test_another_backends_layout_is_refused(backend):
    dense = weights((32, 24))
    for w in (dense, jentropy.to_resident(dense, "reference")):
        with pytest.raises(UnsupportedError, match="reference"):
            jentropy.matmul(jnp.ones((1, 32)), w, backend=backend)
    assert jentropy.matmul(jnp.ones((1, 32)), w, backend="reference").shape == (1, 24)


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
def test_kernels_that_do_not_work_are_not_taken(backend, monkeypatch, caplog):
    jax.devices()  # of whose plugins some log what they miss
    monkeypatch.setattr(logging.root.manager, "disable", 0)  # the command silences all loggers
    monkeypatch.setattr(backends, "suitable_backend", lambda: backend)

    def by_group(x, w, sizes, interpret, **options):
        dense = PLAIN(w, jnp.float32)
        return jentropy.grouped_matmul(x, dense, sizes, **options)

    def chosen(
        decode=backends.decode,
        matmul=backends.matmul,
        grouped=by_group,
        number_format=FORMATS["BF16"],
    ) -> str:
        backends.trouble_of.cache_clear()
        caplog.clear()
        monkeypatch.setattr(backends, "decode", decode)
        monkeypatch.setattr(backends, "matmul", matmul)
        monkeypatch.setattr(backends, "grouped_matmul", grouped)
        return backends.default_backend(number_format)

    def right(x, w, interpret, **options):
        dense = PLAIN(w, jnp.float32)
        return jentropy.matmul(x, dense, **options)

    def in_plain_jax(w, dtype, interpret=False):
        return PLAIN(w, dtype)

    def fails(*_, **__):
        raise RuntimeError("no such instruction\nand more")

    def fails_of_scaled(x, w, **options):
        return fails() if w.layout == f"{backend}_scaled" else right(x, w, **options)

    assert chosen(in_plain_jax, right) == backend
    assert not caplog.text
    assert chosen(in_plain_jax, fails) == "reference"
    assert "RuntimeError: no such instruction);" in caplog.text
    assert chosen(in_plain_jax, lambda *given, **options: right(*given, **options) * 1.01) == (
        "reference"
    )
    assert "products are off by 1.0e-02" in caplog.text
    swapped = lambda x, w, *given, **options: by_group(x, w[::-1], *given, **options)  # noqa: E731
    assert chosen(in_plain_jax, right, swapped) == "reference"
    assert "experts are off by" in caplog.text
    assert chosen(lambda *given: in_plain_jax(*given) + (len(given) == 3)) == "reference"
    assert f"backend {backend!r}" in caplog.text
    assert "decode gives other numbers" in caplog.text
    some = in_plain_jax, fails_of_scaled
    assert chosen(*some) == chosen(*some, number_format=None) == backend
    assert chosen(*some, number_format=FP8_ROW) == "reference"
    assert f"layout {backend}_scaled" in caplog.text
    backends.trouble_of.cache_clear()


def test_matrices_of_a_stack():
    dense, x = weights((2, 3, 32, 48)), inputs((4, 48), jnp.bfloat16)
    w = jentropy.to_resident(dense, "reference")
    assert w.stack == (2, 3)
    for at in ((1, 2), (-1, 0), (np.int32(0), jnp.int32(1))):
        one = w[at]
        assert one.shape == (32, 48)
        assert one.nbytes == w.nbytes // 6
        assert same_bits(jentropy.decode(one), dense[at])
        y = jentropy.matmul(x, one, transpose_w=True)
        assert same_bits(y, jentropy.matmul(x, dense[at], transpose_w=True))
    ids = jnp.array([3, 0])
    assert same_bits(jentropy.pallas_kernels.take_rows(w[0, 1], ids), dense[0, 1][ids])
    for at in (0, slice(1, 2), (slice(None), 1), (1, jnp.array([2, 0])), ()):
        assert w[at].index is None
        assert same_bits(jentropy.decode(w[at]), dense[at])
    assert len(list(w)) == 2
    for at in ((2, 0), (0, -4), (0, 0, 0), 2, (-3, slice(None))):
        with pytest.raises(IndexError, match=r"\[2, 3\]"):
            w[at]
    with pytest.raises(IndexError, match=r"\[\]"):
        w[0, 0][0]


def test_a_stack_without_escapes():
    w = jentropy.to_resident(jnp.ones((3, 64, 512), jnp.bfloat16), "reference")
    assert w.arrays["escape_codes"].size == 0
    assert same_bits(jentropy.decode(w[1]), jnp.ones((64, 512), jnp.bfloat16))


def test_traced_indices_of_a_stack():
    dense, x = weights((3, 32, 48)), inputs((4, 48), jnp.bfloat16)
    w = jentropy.to_resident(dense, "reference")
    every = jax.vmap(lambda i: jentropy.matmul(x, w[i], transpose_w=True))
    held = dense[jnp.array([2, 0, 2, 0])]  # outside, it is the nearest
    expected = jnp.stack([jentropy.matmul(x, one, transpose_w=True) for one in held])
    assert same_bits(every(jnp.array([-1, -3, 7, -9])), expected)
    again = jax.jit(lambda w, i: jentropy.decode(w[i]))
    assert same_bits(again(w, jnp.int32(1)), dense[1])


@pytest.mark.parametrize("name", ["BF16", "MXFP4", "FP8 128x128"])
def test_blocks_of_rows_are_the_matrix(name, monkeypatch):
    """Several blocks of a small matrix, that lies in a stack too: numbers, and their product."""
    monkeypatch.setattr(row_blocks, "WEIGHTS", 64 * 96)
    monkeypatch.setattr(row_blocks, "LEAST", 1)
    values, x = inputs((3, 256, 96), jnp.float32), inputs((5, 96), jnp.float32)
    stack = jentropy.to_resident(weight_of(VARIANTS[name].number_format, values), "reference")
    matrix = jax.tree.map(lambda array: array[1], stack)
    dense = jentropy.decode(matrix, jnp.float32)
    every = jnp.arange(4, dtype=jnp.int32)
    for w in (matrix, stack[1]):
        count, block = w.record.blocks(w)
        assert count == every.size
        assert same_bits(jax.lax.map(block, every).reshape(256, 96), dense)
        y = jax.jit(partial(jentropy.matmul, transpose_w=True))(x, w)
        assert same_bits(y, jax.jit(product)(x, dense))


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """Of all rows at once."""
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), precision="highest")
