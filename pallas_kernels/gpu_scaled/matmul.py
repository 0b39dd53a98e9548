"""x @ w from scaled codes on Hopper."""

from __future__ import annotations

from functools import partial

from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.hopper import stream
from jentropy.pallas_kernels.hopper.plan import HopperPlan
from jentropy.pallas_kernels.resident import ResidentTensor

from .blocks import GROUPS, Kind
from .numbers import Decoding


def source(weight: ResidentTensor, plan: HopperPlan, product: Product) -> stream.Source:
    """How weights become fragments."""
    decoding = Decoding.of(weight, product.interpret)
    # As the loop model says: not of MXFP4, whose tall tiles are slower with it.
    ahead = decoding.kind in GROUPS and (decoding.kind, decoding.element.words) != (Kind.POWERS, 1)
    return stream.Source(
        arrays=tuple(weight.arrays[name] for name in decoding.copied()),
        columns=decoding.columns(),
        rows=tuple(weight.arrays[name] for name in decoding.rows()),
        which=weight.which(),
        begin=decoding.begin,
        prepare=partial(decoding.prepare, columns=plan.config.tile_k),
        words=decoding.words,
        block=decoding.pieces,
        ahead=ahead,
        group=decoding.group if decoding.kind is Kind.NUMBERS else 0,
        scale=decoding.scale,
        finish=decoding.finish,
        name="matmul_scaled",
    )
