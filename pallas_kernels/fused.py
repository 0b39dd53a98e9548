"""x @ w by a layout's kernels: fused, or decode and XLA's product, as the plan says.

The product is linear in x: its transpose is the other product with the same compressed weight. A
batch of x is more rows of x, so `vmap` reads the weight once; a batch of weights is a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jentropy import modes

from . import bf16
from .layout import Kernels, Plan
from .resident import ResidentTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Which product; static and hashable.

    Attributes:
      transpose_w: multiplies by the transpose of the stored matrix.
      x_dtype, out_dtype: of x and of the result.
      full_precision: float32 throughout; else x is rounded to bfloat16 where it meets w.
      interpret: False, or what `matmul` takes for kernels' interpret mode.
    """

    transpose_w: bool
    x_dtype: np.dtype
    out_dtype: np.dtype
    full_precision: bool = False
    interpret: Any = False

    def transposed(self) -> Product:
        """The product that takes a cotangent of the result to one of x."""
        return replace(
            self,
            transpose_w=not self.transpose_w,
            x_dtype=self.out_dtype,
            out_dtype=self.x_dtype,
        )


def kernels_of(w: ResidentTensor) -> Kernels:
    """The Pallas kernels that read a weight, imported now."""
    return w.record.kernels()


def as_read(w: ResidentTensor) -> ResidentTensor:
    """What products read of a weight."""
    kept = {name: a for name, a in w.arrays.items() if name not in w.record.unread}
    return replace(w, arrays=kept)


def dtype_of(x: Array | np.ndarray) -> np.dtype:
    """The dtype in which kernels take x."""
    return np.dtype(x.dtype if x.dtype in (jnp.bfloat16, jnp.float32) else jnp.float32)


def summed(w: ResidentTensor, product: Product) -> int:
    """The axis of what is packed, -1 or -2, that a product sums over."""
    return -1 if product.transpose_w != w.transposed else -2


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
        return one_product(x, w, product)

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


@modes.standard
def one_product(
    x: Float[Array, "M K"], w: ResidentTensor, product: Product, plan: Plan | None = None
) -> Float[Array, "M N"]:
    """One of the two products with a single matrix, also where it is differentiated later.

    Layers alike share one kernel: each would be compiled anew where it stands alone, since Mosaic
    numbers the names of what it lowers.

    Args:
      plan: None: the one of this process's device.
    """
    count = bf16.PARTS if product.full_precision and x.dtype == jnp.float32 else 1
    if plan is None:
        plan = kernels_of(w).plan(w, x.shape[0] * count)
    return _planned(x, w, product=product, plan=plan, count=count)


@partial(jax.jit, static_argnames=("product", "plan", "count"))
def _planned(x: Array, w: ResidentTensor, *, product: Product, plan: Plan, count: int) -> Array:
    kernels, axis = kernels_of(w), summed(w, product)
    if axis != w.record.reduces or not plan.fused:
        exact = product.full_precision or (plan.few and _is_scaled(w))
        dense = decode(as_read(w), jnp.float32 if exact else jnp.bfloat16, product.interpret)
        return _dense(x, dense, axis).astype(product.out_dtype)
    rows, n = x.shape[0] * count, w.extent[-1 if axis == -2 else -2]
    if count > 1:  # below each other: the weight is read once for all
        x = jnp.concatenate(bf16.parts(x, count))
    x = x.astype(jnp.bfloat16)
    padded = plan.x_shape(*x.shape, interpret=bool(product.interpret))
    if padded != x.shape:
        x = jnp.pad(x, [(0, more - size) for more, size in zip(padded, x.shape, strict=True)])
    within = product if count == 1 else replace(product, out_dtype=np.dtype(np.float32))
    one_pass = partial(kernels.multiply, weight=w, plan=plan, product=within)
    if plan.passes == 1:
        y = one_pass(x)
    else:
        y = jax.lax.map(one_pass, x.reshape(plan.passes, plan.m, plan.k))
        y = y.reshape(-1, y.shape[-1])
    y = y[:rows, :n]
    y = y if count == 1 else y.reshape(count, -1, n).sum(0)
    return y.astype(product.out_dtype)


def decode(w: ResidentTensor, dtype: Any, interpret: Any) -> Shaped[Array, "rows columns"]:
    """The packed matrix, by the layout's kernel."""
    rows, columns = w.extent
    return kernels_of(w).decode(w, jnp.dtype(dtype), interpret)[:rows, :columns]


def _dense(
    x: Float[Array, "M K"], dense: Float[Array, "rows columns"], axis: int
) -> Float[Array, "M N"]:
    """x times a decoded matrix, summed over one of its axes, of many rows as in prefill.

    x is rounded to the matrix's dtype: bfloat16, or float32 for a product in full precision.
    """
    return jax.lax.dot_general(
        x.astype(dense.dtype),
        dense,
        (((1,), (axis % 2,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if dense.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _is_scaled(w: ResidentTensor) -> bool:
    """Whether its numbers have more bits than bfloat16 holds."""
    return any(p.element.name != "FP8_E8M0" for p in w.number_format.parameters)
