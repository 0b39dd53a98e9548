"""The kernels of a layout on Hopper, in one record: all differ in how weights become fragments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Array, BFloat16, Float, Int

from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.layout import Kernels
from jentropy.pallas_kernels.resident import ResidentTensor

from . import groups, stream
from .plan import HopperPlan


def kernels(
    plan: Callable[..., HopperPlan],
    source: Callable[[ResidentTensor, HopperPlan, Product], stream.Source],
    decode: Callable[..., Any],
) -> Kernels:
    """See `layout.Kernels`; `source` says how weights become fragments."""

    def multiply(
        x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: HopperPlan, product: Product
    ) -> Float[Array, "rows columns"]:
        """x times the transpose of the packed matrix, both padded; y has no padding if compiled."""
        fragments = source(weight, plan, product)
        options = {"out_dtype": product.out_dtype, "interpret": product.interpret}
        return stream.multiply(x, fragments, plan, **options)

    def grouped(
        x: Float[Array, "M K"],
        weight: ResidentTensor,
        sizes: Int[Array, " groups"],
        product: Product,
    ) -> Float[Array, "M N"] | None:
        """x times the matrix of each row's group; 0 in rows of none."""
        return groups.multiply(x, weight, sizes, product, plan_of=plan, source_of=source)

    return Kernels(
        plan=plan,
        multiply=multiply,
        decode=decode,
        grouped=grouped,
        grouped_plan=partial(groups.plan, plan_of=plan),
    )
