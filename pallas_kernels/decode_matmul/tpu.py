"""x @ w on TPU: the fused kernels, or decode and XLA's product, as the plan says.

A layout's kernel is `multiply(x, weight, plan, target, interpret)` of its file here, which sums
over the rows of the packed matrix and computes in float32 from bfloat16 x.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jentropy.pallas_kernels.compiling import interpret_params
from jentropy.pallas_kernels.decode import tpu as decode
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import Target, current_target

from . import dense, parts, tpu_scaled, tpu_window12
from .plan import Plan
from .plan import plan as make_plan
from .transforms import Product

KERNELS: dict[str, ModuleType] = {"tpu_window12": tpu_window12, "tpu_scaled": tpu_scaled}


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
    count = parts.count_of(x, product)
    rows = x.shape[0] * count
    plan = plan_product(w, rows, target)
    if product.transpose_w != w.turned or not plan.fused:
        exact = product.full_precision or (rows <= target.fused_rows and _is_scaled(w))
        dtype = jnp.dtype(jnp.float32 if exact else jnp.bfloat16)
        return dense.multiply(x, decode.dense(w, dtype, interpret=product.interpret), w, product)
    k, n = w.module.extent(w)
    x = jnp.pad(parts.split(x, count), ((0, plan.passes * plan.m - rows), (0, plan.k - k)))
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
    return parts.join(y[:rows, :n], count).astype(product.out_dtype)


def _is_scaled(w: ResidentTensor) -> bool:
    """Whether its numbers have more bits than bfloat16 holds."""
    return any(p.element.name != "FP8_E8M0" for p in w.number_format.parameters)
