"""Resident weights in plain JAX: decode, then multiply. What every other backend is held to."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Shaped

from jentropy import modes

from . import row_blocks
from .resident import ResidentTensor


@modes.standard
def decode(w: ResidentTensor, dtype: Any) -> Shaped[Array, "*shape"]:
    """The dense weight, bit for bit, of any layout."""

    def one(w: ResidentTensor) -> Array:
        rows, columns = w.extent
        packed = w.record.decode(w, dtype)[:rows, :columns]
        return packed.T if w.transposed else packed

    for _ in w.stack:
        one = jax.vmap(one)
    return one(w.alone())


@partial(jax.jit, static_argnames="dtype")
def take_rows(
    w: ResidentTensor, ids: Int[Array, "*batch"], dtype: Any
) -> Shaped[Array, "*batch columns"]:
    """Rows of a matrix; only these are decoded where products sum over its columns."""
    (rows, columns), reduces = w.matrix, w.record.reduces
    flat = jnp.clip(ids.reshape(-1), 0, rows - 1)
    if w.transposed == (reduces == -2):
        taken = w.record.take(w.alone(), flat, dtype)[:, :columns]
    else:
        taken = decode(w, dtype)[flat]
    return taken.reshape(*ids.shape, columns)


def matmul(
    x: Float[Array | np.ndarray, "*batch K"],
    w: ResidentTensor,
    *,
    transpose_w: bool,
    out_dtype: Any,
) -> Float[Array, "*batch N"]:
    """x @ w, bit for bit the product with the dense weight, which is float32 if w has scales.

    The barrier keeps XLA from fusing the decode into the product, where it could change the order
    of the sum.
    """
    return _matmul(x, w, transpose_w=transpose_w, out_dtype=jnp.dtype(out_dtype))


# Traced once for products with any number of rows of x.
_decoded = jax.jit(decode, static_argnums=1)


@jax.jit
def _block(w: ResidentTensor, at: Int[Array, ""]) -> Float32[Array, "rows columns"]:
    """The rows of a block, traced once too."""
    assert w.record.blocks is not None
    return w.record.blocks(w)[1](at)


@partial(jax.jit, static_argnames=("transpose_w", "out_dtype"))
def _matmul(x: Array, w: ResidentTensor, *, transpose_w: bool, out_dtype: Any) -> Array:
    dtype = jnp.dtype(w.dtype if w.number_format.is_plain else jnp.float32)

    def whole(x: Array, w: ResidentTensor) -> Array:
        dense = jax.lax.optimization_barrier(_decoded(w, dtype))
        return _product(x, dense, transpose_w=transpose_w, out_dtype=out_dtype)

    def by_blocks(x: Array, w: ResidentTensor) -> Array:
        assert w.record.blocks is not None
        blocks, _ = w.record.blocks(w)
        y = row_blocks.multiply(
            x.astype(jnp.float32),
            blocks,
            partial(_block, w),
            transpose_w=transpose_w != w.transposed,
        )
        return y.astype(out_dtype)

    # What has parameters is multiplied as float32 is: rows that are summed over stay together.
    apart = transpose_w != w.transposed or w.number_format.is_plain
    if w.record.blocks is None or not apart or _meeting(x.dtype, dtype) not in _BY_BLOCKS:
        return whole(x, w)
    return _on_cpu(by_blocks, whole, x, w)


def dense_matmul(
    x: Float[Array | np.ndarray, "*batch K"],
    w: Shaped[Array | np.ndarray, "rows columns"],
    *,
    transpose_w: bool,
    out_dtype: Any,
) -> Float[Array, "*batch N"]:
    """x @ w with float32 accumulation; x and w meet in the wider of their dtypes.

    That is bfloat16 at the least, which holds floats of 8 bits and fewer. Outputs are filled up to
    whole tiles: XLA for CPU sums in another order where there are fewer, and a weight that is split
    over a mesh gives the bits of the whole.
    """

    return _dense_matmul(x, w, transpose_w=transpose_w, out_dtype=jnp.dtype(out_dtype))


@partial(jax.jit, static_argnames=("transpose_w", "out_dtype"))
def _dense_matmul(x: Array, w: Array, *, transpose_w: bool, out_dtype: Any) -> Array:
    def whole(x: Array, w: Array) -> Array:
        return _product(x, w, transpose_w=transpose_w, out_dtype=out_dtype)

    def by_blocks(x: Array, w: Array) -> Array:
        y = row_blocks.multiply_dense(x.astype(jnp.float32), w, transpose_w)
        return y.astype(out_dtype)

    if not row_blocks.is_narrow(w.dtype) or _meeting(x.dtype, w.dtype) not in _BY_BLOCKS:
        return whole(x, w)
    return _on_cpu(by_blocks, whole, x, w)


_BY_BLOCKS = (
    jnp.bfloat16,
    jnp.float16,
    jnp.float32,
)  # what meets in these is multiplied in the last


def _on_cpu(run: Any, elsewhere: Any, *arguments: Any) -> Array:
    """run(*arguments) on CPU; other devices take `elsewhere`."""
    return jax.lax.platform_dependent(*arguments, cpu=run, default=elsewhere)


def _meeting(x: Any, w: Any) -> Any:
    return jnp.promote_types(_promotable(x), _promotable(w))


def _product(x: Any, w: Any, *, transpose_w: bool, out_dtype: Any) -> Array:
    dtype = _meeting(x.dtype, w.dtype)
    contract = (((x.ndim - 1,), (1 if transpose_w else 0,)), ((), ()))
    outputs = w.shape[0 if transpose_w else 1]
    w = row_blocks.whole_tiles(w, row_blocks.least(x)) if transpose_w else w
    y = jax.lax.dot_general(
        x.astype(dtype),
        w.astype(dtype),
        contract,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )
    return y[..., :outputs].astype(out_dtype)


def _promotable(dtype: Any) -> Any:
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 1
    return jnp.bfloat16 if narrow else dtype
