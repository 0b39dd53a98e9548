"""grouped_matmul: the products of its groups, from dense and from compressed weights."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy.errors import InputError, UnsupportedError
from jentropy.pallas_kernels import grouped, layer_of
from jentropy.pallas_kernels.variants import VARIANTS, weight_of

from .conftest import same_bits

GROUPS, ROWS = 5, 23
# Rows of each group: ragged, empty ones, fewer in all than there are, one for all.
SIZES = ([3, 0, 9, 1, 10], [0, 0, 4, 0, 0], [0, 0, 0, 0, 0], [0, 23, 0, 0, 0])


def experts(shape=(GROUPS, 64, 96), seed=0) -> jax.Array:
    values = np.random.default_rng(seed).standard_normal(shape) * 0.02
    values[..., ::16, ::17] *= 2.0**12  # escapes of window12
    return jnp.asarray(values, jnp.bfloat16)


def inputs(shape, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), dtype)


def ints(sizes) -> jax.Array:
    return jnp.asarray(sizes, jnp.int32)


def right(x, w, sizes, transpose_w) -> np.ndarray:
    """In float64, group after group."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    w = w.swapaxes(-1, -2) if transpose_w else w
    y, first = np.zeros((x.shape[0], w.shape[-1])), 0
    for matrix, size in zip(w, sizes, strict=True):
        y[first : first + size] = x[first : first + size] @ matrix
        first += size
    return y


@pytest.mark.parametrize("transpose_w", [False, True])
@pytest.mark.parametrize("rows", [ROWS, 600])
def test_every_group_has_its_product(rows, transpose_w):
    dense, x = experts(), inputs((rows, 96 if transpose_w else 64))
    w = jentropy.to_resident(dense, "reference")
    assert w.layout == "reference_window12"
    assert w.arrays["escape_codes"].size
    run = jax.jit(lambda x, w, s: jentropy.grouped_matmul(x, w, s, transpose_w))
    for few in SIZES:
        sizes = [size * (rows // ROWS) for size in few]
        expected = right(x, dense, sizes, transpose_w)
        y = run(x, dense, ints(sizes))
        np.testing.assert_allclose(y, expected, atol=2e-6 * max(1, np.abs(expected).max()))
        assert not np.asarray(y)[sum(sizes) :].any()
        assert same_bits(y, run(x, w, ints(sizes)))


@pytest.mark.parametrize("name", ["FP8 128x128", "MXFP4", "NVFP4", "INT4 g32 zeros"])
def test_compressed_weights_give_the_bits_of_dense_ones(name):
    w = jentropy.to_resident(weight_of(VARIANTS[name].number_format, experts()), "reference")
    assert w.stack == (GROUPS,)
    dense = jentropy.decode(w, jnp.float32 if w.number_format.parameters else w.dtype)
    x = inputs((ROWS, 96))
    run = jax.jit(lambda x, w: jentropy.grouped_matmul(x, w, ints(SIZES[0]), True))
    assert same_bits(run(x, w), run(x, dense))


def test_dtypes():
    x, w = inputs((ROWS, 64), jnp.bfloat16), experts()
    assert jentropy.grouped_matmul(x, w, ints(SIZES[0])).dtype == jnp.bfloat16
    y = jentropy.grouped_matmul(x, w, ints(SIZES[0]), out_dtype=jnp.float32)
    assert y.dtype == jnp.float32
    expected = right(x, w, SIZES[0], False)
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.abs(expected).max())


def test_rows_of_no_group_may_hold_anything():
    x = inputs((ROWS, 64)).at[17:].set(jnp.nan)
    y = jentropy.grouped_matmul(x, experts(), ints([4, 0, 13, 0, 0]))
    assert np.isfinite(y).all()
    assert not np.asarray(y)[17:].any()


def test_groups_end_where_the_rows_do():
    x, w = inputs((ROWS, 64)), experts()
    longer, whole = ([20, -2, 9, 5, 0], [20, 0, 3, 0, 0])
    assert same_bits(*(jentropy.grouped_matmul(x, w, ints(s)) for s in (longer, whole)))


@pytest.mark.parametrize("shape", [(0, 64), (ROWS, 64)])
def test_no_rows_and_no_groups(shape):
    w = experts()[: shape[0]]
    y = jentropy.grouped_matmul(inputs(shape), w, jnp.zeros(w.shape[0], jnp.int32))
    assert y.shape == (shape[0], 96)
    assert not y.any()


def test_derivatives():
    dense, sizes = experts().astype(jnp.float32), SIZES[0]
    of_group = np.repeat(np.arange(GROUPS), sizes)
    x, weight = inputs((ROWS, 64)), inputs((ROWS, 96))

    def loss(x, w, transpose_w=False):
        return (jentropy.grouped_matmul(x, w, ints(sizes), transpose_w) * weight).sum()

    def plain(x, w):
        return (jnp.einsum("mk,mkn->mn", x, w[of_group], precision="highest") * weight).sum()

    expected = jax.grad(plain, (0, 1))(x, dense)
    for found in (
        jax.jit(jax.grad(loss, (0, 1)))(x, dense),
        [
            g if i == 0 else g.swapaxes(1, 2)
            for i, g in enumerate(jax.grad(loss, (0, 1))(x, dense.swapaxes(1, 2), True))
        ],
    ):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))
    w = jentropy.to_resident(experts(), "reference")
    np.testing.assert_allclose(
        jax.grad(loss)(x, w), expected[0], atol=1e-5 * float(jnp.abs(expected[0]).max())
    )


def test_layers_of_experts_are_scanned_in_place():
    """No copy of any layer's experts is made, and nothing is widened that is not multiplied."""
    dense = experts((3, GROUPS, 96, 96))
    w, x, sizes = jentropy.to_resident(dense, "reference"), inputs((ROWS, 96)), ints(SIZES[0])

    @jax.jit
    def through(w, x):
        def layer(x, i):
            held = w.layer(i) if isinstance(w, jentropy.ResidentTensor) else layer_of(w, i)
            return jentropy.grouped_matmul(x, held, sizes, True), None

        return jax.lax.scan(layer, x, jnp.arange(3))[0]

    y = through(dense, x)
    assert same_bits(through(w, x), y)
    dense_program = through.lower(dense, x).compile()
    assert dense_program.memory_analysis().temp_size_in_bytes < dense.nbytes
    program = through.lower(w, x).compile().as_text()
    largest = max(w.arrays.values(), key=lambda array: array.nbytes)
    made = ",".join(map(str, largest.shape[1:]))
    assert not re.search(rf"= \w+\[{made}\]", program)
    assert same_bits(
        jax.lax.scan(lambda x, w: (jentropy.grouped_matmul(x, w, sizes, True), None), x, w)[0],
        y,
    )


def test_derivatives_in_layers_of_dense_experts():
    dense, x, sizes = experts((2, GROUPS, 96, 96)), inputs((ROWS, 96)), ints(SIZES[0])

    def loss(dense, take):
        def layer(x, i):
            return jentropy.grouped_matmul(x, take(dense, i), sizes, True), None

        return jax.lax.scan(layer, x, jnp.arange(2))[0].sum()

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    plain = lambda dense, i: dense[i]  # noqa: E731
    assert same_bits(grad(dense, layer_of), grad(dense, plain))


def test_it_is_mapped_one_after_the_other():
    dense, x = experts((2, GROUPS, 64, 96)), inputs((2, ROWS, 64))
    sizes = ints([SIZES[0], SIZES[1]])
    each = [jentropy.grouped_matmul(*given) for given in zip(x, dense, sizes, strict=True)]
    for w in (dense, jentropy.to_resident(dense, "reference")):
        assert same_bits(jax.vmap(jentropy.grouped_matmul)(x, w, sizes), jnp.stack(each))
    shared = jax.vmap(lambda x: jentropy.grouped_matmul(x, dense[0], sizes[0]))(x)
    assert same_bits(shared[0], each[0])


def test_layers_of_a_stack():
    dense = experts((2, 3, 32, 48))
    w = jentropy.to_resident(dense, "reference")
    for at in (-1, jnp.int32(0)):
        layer = w.layer(at)
        assert layer.shape == (3, 32, 48)
        assert layer.nbytes == w.nbytes // 2
        for one in (layer[2], layer.alone()[2], layer[1:][1], layer.layer(2)):
            name = max(w.arrays, key=lambda name: w.arrays[name].nbytes)
            np.testing.assert_array_equal(one.array(name), np.asarray(w.arrays[name])[at, 2])
    assert same_bits(jentropy.decode(w.layer(1)), dense[1])
    for stack, at in ((w, 2), (w, -3), (w.layer(0), 3), (w[0, 0], 0)):
        with pytest.raises(IndexError, match=r"into a stack of shape"):
            stack.layer(at)


def test_with_64_bits():
    with jax.enable_x64(True):
        sizes = jnp.asarray(SIZES[0])
        assert sizes.dtype == jnp.int64
        y = jentropy.grouped_matmul(inputs((ROWS, 64)), experts(), sizes)
    assert same_bits(y, jentropy.grouped_matmul(inputs((ROWS, 64)), experts(), ints(SIZES[0])))


def test_a_layout_with_kernels():
    """Matrix after matrix by the kernels of its products, where it has none for groups."""
    dense, x = experts((GROUPS, 128, 256)), inputs((ROWS, 256))
    w = jentropy.to_resident(dense, "tpu")
    assert w.backend == "tpu"
    y = jentropy.grouped_matmul(x, w, ints(SIZES[0]), True, interpret="hlo", precision="highest")
    expected = right(x, dense, SIZES[0], True)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


def test_only_experts_with_tokens_are_decoded(monkeypatch):
    read = []
    inner = grouped.reference.matmul

    def matmul(rows, w, **options):
        jax.debug.callback(lambda index: read.append(int(index)), w.index)
        return inner(rows, w, **options)

    monkeypatch.setattr(grouped.reference, "matmul", matmul)
    w = jentropy.to_resident(experts((64, 16, 32)), "reference")
    sizes = np.zeros(64, np.int32)
    sizes[[3, 17, 40, 63]] = 1
    jentropy.grouped_matmul(inputs((4, 32)), w, ints(sizes), True).block_until_ready()
    jax.effects_barrier()
    assert sorted(read) == [3, 17, 40, 63]


@pytest.mark.parametrize(
    ("x", "shape", "sizes", "message"),
    [
        ((4, 64), (64, 96), [4], "three dimensions"),
        ((4, 63), (2, 64, 96), [4, 0], r"64 in the last of 2 dimensions .*\[4, 63\]"),
        ((2, 4, 64), (2, 64, 96), [4, 0], r"found \[2, 4, 64\]"),
        ((4, 64), (2, 64, 96), [4], "group_sizes: expected 2"),
    ],
)
def test_shapes_that_do_not_fit(x, shape, sizes, message, unchecked):
    with pytest.raises(InputError, match=message):
        jentropy.grouped_matmul(jnp.ones(x), jnp.ones(shape), jnp.asarray(sizes))


def test_other_things_that_are_refused(unchecked):
    x, w = jnp.ones((4, 64)), jnp.ones((2, 64, 96))
    with pytest.raises(InputError, match="expected integers, found float32"):
        jentropy.grouped_matmul(x, w, jnp.ones(2))
    with pytest.raises(InputError, match="expected an array, found list"):
        jentropy.grouped_matmul(x, w, [2, 2])
    with pytest.raises(UnsupportedError, match="dense weight"):
        jentropy.grouped_matmul(x, w, ints([2, 2]), backend="tpu")
