"""What JAX's transformations make of a product with a resident weight, for any Pallas backend.

The product is linear in x: its transpose is the other product with the same compressed weight. A
batch of x is more rows of x, so `vmap` reads the weight once; a batch of weights is a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from . import fused
from .fused import Product
from .resident import ResidentTensor


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(x: Float[Array, "M K"], w: ResidentTensor, product: Product) -> Float[Array, "M N"]:
    """x times w; differentiable in x, and mapped over x without reading w more than once."""
    return _mapped(product)(x, w)


def _forward(x: Array, w: ResidentTensor, product: Product) -> tuple[Array, ResidentTensor]:
    return multiply(x, w, product), w


def _backward(product: Product, w: ResidentTensor, cotangent: Array) -> tuple[Array, None]:
    return multiply(cotangent, w, product.transposed()), None


multiply.defvjp(_forward, _backward)


def _mapped(product: Product) -> Callable[[Array, ResidentTensor], Array]:
    @jax.custom_batching.custom_vmap
    def call(x: Array, w: ResidentTensor) -> Array:
        return fused.multiply(x, w, product)

    @call.def_vmap
    def rule(size: int, batched: Any, x: Array, w: ResidentTensor) -> tuple[Array, bool]:
        x_batched, w_batched = batched
        if not any(jax.tree.leaves(w_batched)):
            y = call(x.reshape(-1, x.shape[-1]), w)
            return y.reshape(size, -1, y.shape[-1]), True

        def one(i: Array) -> Array:
            if w.index is None and all(jax.tree.leaves(w_batched)):
                matrix = w[i]  # in place
            else:
                matrix = jax.tree.map(lambda a, is_batched: a[i] if is_batched else a, w, w_batched)
            return call(x[i] if x_batched else x, matrix)

        return jax.lax.map(one, jax.numpy.arange(size)), True

    return call
