"""How products with window12 run on Hopper."""

from __future__ import annotations

import jax

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.hopper import tuning
from jentropy.pallas_kernels.hopper.plan import (
    TILE_N,
    UNIT,
    WARPGROUPS,
    HopperPlan,
    Traits,
    make_plan,
)
from jentropy.pallas_kernels.resident import ResidentTensor

TILES_K = (256, 128)


def plan(weight: ResidentTensor, rows: int, target: targets.Gpu | None = None) -> HopperPlan:
    """How x of so many rows is multiplied by the packed matrix: as tuned, if it was."""
    n, k = weight.extent
    tuned = tuning.load(jax.devices()[0].device_kind, weight.layout)
    return make_plan(
        m=rows,
        k=k,
        n=n,
        traits=traits(weight.arrays["escapes"].shape[-1]),
        target=tuned.target(targets.current_gpu() if target is None else target),
        config=tuned.config(rows, k, n),
    )


def traits(list_words: int) -> Traits:
    """Of weights at 12 bits, with a list of so many words for every 64 by 128 of them."""
    unit_bytes = TILE_N * UNIT * 3 // 2 + WARPGROUPS * list_words * 4
    return Traits(unit_bytes=unit_bytes, tiles_k=TILES_K)
