"""x @ w from scaled codes on Hopper."""

from __future__ import annotations

from functools import partial

from jaxtyping import Array, BFloat16, Float

from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.hopper import stream
from jentropy.pallas_kernels.hopper.plan import HopperPlan
from jentropy.pallas_kernels.resident import ResidentTensor

from .blocks import Kind
from .numbers import Decoding


def multiply(
    x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: HopperPlan, product: Product
) -> Float[Array, "M N"]:
    """x times the transpose of the packed matrix, both padded."""
    decoding = Decoding.of(weight, product.interpret)
    source = stream.Source(
        arrays=tuple(weight.arrays[name] for name in decoding.copied()),
        columns=decoding.columns(),
        rows=tuple(weight.arrays[name] for name in decoding.rows()),
        which=weight.which(),
        begin=decoding.begin,
        prepare=partial(decoding.prepare, columns=plan.config.tile_k),
        block=decoding.pieces,
        group=decoding.group if decoding.kind is Kind.NUMBERS else 0,
        scale=decoding.scale,
        finish=decoding.finish,
        name="matmul_scaled",
    )
    return stream.multiply(
        x, source, plan, out_dtype=product.out_dtype, interpret=product.interpret
    )
