"""Decode the whole weight, then multiply: what every other backend is held to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jentropy.pallas_kernels.resident import ResidentTensor


def matmul(
    x: Float[Array, "*batch K"], w: ResidentTensor, *, transpose_w: bool, out_dtype: Any
) -> Float[Array, "*batch N"]:
    """x @ w, bit for bit the product with the dense weight, which is float32 if w has scales.

    The barrier keeps XLA from fusing the decode into the product, where it could change the order
    of the sum.
    """
    dtype = jnp.float32 if w.number_format.parameters else w.dtype
    dense = jax.lax.optimization_barrier(w.module.decode(w.own(), jnp.dtype(dtype)))
    return dense_matmul(x, dense, transpose_w=transpose_w, out_dtype=out_dtype)


def dense_matmul(
    x: Float[Array, "*batch K"],
    w: Shaped[Array, "rows columns"],
    *,
    transpose_w: bool,
    out_dtype: Any,
) -> Float[Array, "*batch N"]:
    """x @ w with float32 accumulation; x and w meet in the wider of their dtypes.

    That is bfloat16 at the least, which holds floats of 8 bits and fewer.
    """
    dtype = jnp.promote_types(_promotable(x.dtype), _promotable(w.dtype))
    contract = (((x.ndim - 1,), (1 if transpose_w else 0,)), ((), ()))
    y = jax.lax.dot_general(
        x.astype(dtype),
        w.astype(dtype),
        contract,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )
    return y.astype(out_dtype)


def _promotable(dtype: Any) -> Any:
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 1
    return jnp.bfloat16 if narrow else dtype
