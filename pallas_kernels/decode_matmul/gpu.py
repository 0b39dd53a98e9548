"""x @ w on Hopper GPUs: the fused kernels, or decode and XLA's product, as the plan says.

A layout's kernel is `multiply(x, weight, plan, out_dtype, interpret)` of its file here, which sums
over the columns of the packed matrix and computes in float32 from bfloat16 x.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jentropy.pallas_kernels.decode import gpu as decode
from jentropy.pallas_kernels.gpu_targets import GpuTarget, current_target
from jentropy.pallas_kernels.resident import ResidentTensor

from . import dense, gpu_window12, parts, tuning
from .gpu_plan import Plan
from .gpu_plan import plan as make_plan
from .transforms import Product

KERNELS: dict[str, ModuleType] = {"gpu_window12": gpu_window12}


def plan_product(weight: ResidentTensor, rows: int, target: GpuTarget) -> Plan:
    """How x of so many rows is multiplied by the packed matrix."""
    n, k = weight.module.extent(weight)
    tuned = tuning.load(jax.devices()[0].device_kind, weight.layout)
    return make_plan(
        m=rows,
        k=k,
        n=n,
        list_words=weight.arrays["escapes"].shape[-1],
        target=tuned.target(target),
        config=tuned.config(rows, k, n),
    )


def product(
    x: Float[Array, "M K"], w: ResidentTensor, product: Product, plan: Plan | None = None
) -> Float[Array, "M N"]:
    """One of the two products with a single matrix.

    Layers alike share one kernel: each would be compiled anew where it stands alone, since Mosaic
    numbers the names of what it lowers.
    """
    rows = x.shape[0] * parts.count_of(x, product)
    plan = plan_product(w, rows, current_target()) if plan is None else plan
    return _planned(x, w, product=product, plan=plan)


@partial(jax.jit, static_argnames=("product", "plan"))
def _planned(x: Array, w: ResidentTensor, *, product: Product, plan: Plan) -> Array:
    if product.transpose_w == w.turned or not plan.fused:
        dtype = jnp.dtype(jnp.float32 if product.full_precision else jnp.bfloat16)
        return dense.multiply(x, decode.dense(w, dtype, interpret=product.interpret), w, product)
    n, k = w.module.extent(w)
    count = parts.count_of(x, product)
    rows, x = x.shape[0] * count, parts.split(x, count)
    if x.shape != (plan.passes * plan.m, plan.k):
        x = jnp.pad(x, ((0, plan.passes * plan.m - rows), (0, plan.k - k)))
    multiply = KERNELS[w.layout].multiply
    own = partial(
        multiply,
        out_dtype=product.out_dtype if count == 1 else jnp.float32,
        interpret=product.interpret,
    )
    each = [own(x[i * plan.m : (i + 1) * plan.m], w, plan) for i in range(plan.passes)]
    y = each[0] if plan.passes == 1 else jnp.concatenate(each)
    return parts.join(y[:rows, :n], count).astype(product.out_dtype)
