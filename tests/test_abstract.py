"""Weights without data, and what is said where JAX is only tracing or a weight is not resident."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy.errors import InputError, UnsupportedError
from jentropy.pallas_kernels import abstract_weight, laying_out, take_rows
from jentropy.pallas_kernels.variants import VARIANTS, weight_of

NAMES = ("BF16", "FP8 row", "FP8 128x128", "MXFP8", "NVFP4", "INT4 g128 zeros")
BY_NUMBERS = ("rare", "nan")  # arrays that are there for some numbers only
OPTIONS_BY_NUMBERS = ("shift", "exact", "inline")


def described(weight: Any) -> Any:
    return (
        weight.layout,
        weight.shape,
        weight.transposed,
        weight.number_format,
        {k: v for k, v in weight.options if k not in OPTIONS_BY_NUMBERS},
        {k: (a.shape, a.dtype) for k, a in weight.arrays.items() if k not in BY_NUMBERS},
    )


@pytest.mark.parametrize("shape", [(256, 512), (2, 160, 384)])
@pytest.mark.parametrize("backend", ["reference", "tpu", "gpu"])
@pytest.mark.parametrize("name", NAMES)
def test_abstract_weights_are_what_real_ones_become(name, backend, shape):
    number_format = VARIANTS[name].number_format
    dense = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.02
    real = weight_of(number_format, jnp.asarray(dense, jnp.bfloat16))
    empty: Any = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    if number_format.parameters:
        empty = abstract_weight(number_format, shape)
    expected = jentropy.to_resident({"w": real}, backend)["w"]
    made = jentropy.to_resident({"w": empty}, backend)["w"]
    assert all(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(made))
    assert described(made) == described(expected)
    assert made.bits_per_weight == pytest.approx(expected.bits_per_weight, rel=0.02)


def test_a_program_for_an_abstract_weight_takes_a_real_one():
    dense = np.random.default_rng(0).standard_normal((256, 512)) * 0.02
    real = jentropy.to_resident(jnp.asarray(dense, jnp.bfloat16), "reference")
    empty = jentropy.to_resident(jax.ShapeDtypeStruct((256, 512), jnp.bfloat16), "reference")
    x = jnp.ones((2, 512), jnp.bfloat16)
    run = jax.jit(lambda x, w: jentropy.matmul(x, w, transpose_w=True))
    assert run.lower(x, empty).compile()(x, real).shape == (2, 256)
    small = jentropy.to_resident({"b": jax.ShapeDtypeStruct((5,), jnp.float32)}, "reference")
    assert small == {"b": jax.ShapeDtypeStruct((5,), jnp.float32)}


@pytest.mark.parametrize("function", [jentropy.compress, jentropy.to_resident])
@pytest.mark.parametrize("trace", [jax.jit, lambda f: lambda x: jax.eval_shape(f, x), jax.vmap])
def test_one_clear_error_inside_of_a_trace(function, trace):
    with pytest.raises(UnsupportedError, match=r"'w': numbers: .*trace of jax.jit.*outside"):
        trace(lambda tree: function(tree))({"w": jnp.ones((4, 8), jnp.bfloat16)})


def test_archives_inside_of_a_trace():
    packed = jentropy.compress(jnp.ones((64, 64), jnp.bfloat16))
    for function in (jentropy.decompress, jentropy.to_resident):
        with pytest.raises(UnsupportedError, match=r"trace of jax.jit"):
            jax.eval_shape(function, packed)


@pytest.mark.usefixtures("unchecked")
def test_products_with_archives_name_to_resident():
    packed = jentropy.compress(jnp.ones((16, 8), jnp.bfloat16))
    x = jnp.ones((2, 16))
    for wrong in (
        lambda: jentropy.matmul(x, packed),
        lambda: take_rows(packed, jnp.zeros(1, jnp.int32)),
    ):
        with pytest.raises(InputError, match=r"CompressedTensor \(.*to_resident"):
            wrong()
    with pytest.raises(InputError, match="a ResidentTensor or an array, found dict"):
        jentropy.matmul(x, {"w": packed})


def test_wide_matrices_say_once_that_they_rest_dense(caplog):
    laying_out._log.cache_clear()
    with caplog.at_level(logging.WARNING):
        for dtype in (jnp.float32, jnp.float16, jnp.float32):
            w = jentropy.to_resident(jnp.ones((4, 8), dtype), "reference")
            assert isinstance(w, jax.Array)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("float32 matrices rest dense")
