"""The product with a weight that was decoded first: of many rows, as in prefill and training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jentropy.pallas_kernels.resident import ResidentTensor

from .transforms import Product


def multiply(
    x: Float[Array, "M K"], dense: Float[Array, "rows columns"], w: ResidentTensor, product: Product
) -> Float[Array, "M N"]:
    """x times a decoded matrix as its layout has it, or its transpose.

    x is rounded to the matrix's dtype: bfloat16, or float32 for a product in full precision.
    """
    axis = 1 if product.transpose_w != w.turned else 0
    y = jax.lax.dot_general(
        x.astype(dense.dtype),
        dense,
        (((1,), (axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if dense.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    return y.astype(product.out_dtype)
