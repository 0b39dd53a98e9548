"""x @ w on TPU: the fused kernels, or decode and XLA's product, as the plan says.

A layout's kernel is `multiply(x, weight, plan, target, interpret)` of its file here, which sums
over the rows of the packed matrix and computes in float32 from bfloat16 x.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jentropy.pallas_kernels.compiling import interpret_params
from jentropy.pallas_kernels.decode import tpu as decode
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import Target, current_target

from . import tpu_scaled, tpu_window12
from .plan import Plan
from .plan import plan as make_plan
from .transforms import Product

KERNELS: dict[str, ModuleType] = {"tpu_window12": tpu_window12, "tpu_scaled": tpu_scaled}
PARTS = 3  # bfloat16 numbers that a float32 is the sum of


def plan_product(weight: ResidentTensor, rows: int, target: Target) -> Plan:
    """How x of so many rows is multiplied by the packed matrix."""
    k, n = weight.module.extent(weight)
    kernel = KERNELS[weight.layout]
    options = dict(weight.options)
    return make_plan(
        m=rows,
        k=k,
        n=n,
        tile_k=options["tile_rows"],
        tile_n=kernel.tile_columns(weight),
        bits_per_weight=weight.bits_per_weight,
        accumulators=kernel.ACCUMULATORS,
        target=target,
    )


def product(
    x: Float[Array, "M K"], w: ResidentTensor, product: Product, target: Target | None = None
) -> Float[Array, "M N"]:
    """One of the two products with a single matrix."""
    target = current_target() if target is None else target
    split = product.full_precision and x.dtype == jnp.float32
    rows = x.shape[0] * (PARTS if split else 1)
    plan = plan_product(w, rows, target)
    if product.transpose_w != w.turned or not plan.fused:
        exact = product.full_precision or (rows <= target.fused_rows and _is_scaled(w))
        return _dense_product(x, w, product, jnp.float32 if exact else jnp.bfloat16)
    k, n = w.module.extent(w)
    if split:
        x = jnp.concatenate(tpu_scaled.bf16_parts(x, PARTS), axis=0)
    x = jnp.pad(x.astype(jnp.bfloat16), ((0, plan.passes * plan.m - rows), (0, plan.k - k)))
    multiply = partial(
        KERNELS[w.layout].multiply,
        weight=w,
        plan=plan,
        target=target,
        interpret=interpret_params(product.interpret),
    )
    if plan.passes == 1:
        y = multiply(x)
    else:
        y = jax.lax.map(multiply, x.reshape(plan.passes, plan.m, plan.k)).reshape(-1, plan.n)
    y = y[:rows, :n]
    if split:
        y = y.reshape(PARTS, -1, n).sum(0)
    return y.astype(product.out_dtype)


def _is_scaled(w: ResidentTensor) -> bool:
    """Whether its numbers have more bits than bfloat16 holds."""
    return any(p.element.name != "FP8_E8M0" for p in w.number_format.parameters)


def _dense_product(x: Array, w: ResidentTensor, product: Product, dtype: Any) -> Array:
    """x times the decoded matrix, or its transpose.

    Weights are rounded to bfloat16 where `dtype` is that: of many rows, as in prefill and training.
    """
    dense = decode.dense(w, jnp.dtype(dtype), interpret=product.interpret)
    axis = 0 if product.transpose_w == w.turned else 1
    y = jax.lax.dot_general(
        x.astype(dtype),
        dense,
        (((1,), (axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    return y.astype(product.out_dtype)
