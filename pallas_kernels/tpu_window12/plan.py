"""How products with window12 run on TPU."""

from __future__ import annotations

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tpu import grouped
from jentropy.pallas_kernels.tpu.grouped import GroupedPlan
from jentropy.pallas_kernels.tpu.plan import TpuPlan, make_plan

ACCUMULATORS = 2  # of the slots, and of escapes


def plan(weight: ResidentTensor, rows: int, target: targets.Tpu | None = None) -> TpuPlan:
    """How x of so many rows is multiplied by the packed matrix."""
    k, n = weight.extent
    return make_plan(
        m=rows,
        k=k,
        n=n,
        tile_k=weight.option("tile_rows"),
        tile_n=weight.option("tile_columns"),  # the layout's: escapes are listed by tiles
        bits_per_weight=weight.bits_per_weight,
        accumulators=ACCUMULATORS,
        target=targets.current_tpu() if target is None else target,
        variant="BF16",
    )


def grouped_plan(
    weight: ResidentTensor, rows: int, target: targets.Tpu | None = None
) -> GroupedPlan:
    """How x of so many rows is multiplied by the packed matrices of its groups."""
    return grouped.make_plan(
        plan(weight, rows, target),
        rows,
        weight.stack[0],
        bits_per_weight=weight.bits_per_weight,
        unit=weight.option("tile_columns"),
        accumulators=ACCUMULATORS,
    )


def decode_tile(weight: ResidentTensor) -> tuple[int, int]:
    """Rows and columns that a step of `decode` decodes."""
    columns = weight.arrays["words"].shape[-1]
    return weight.option("tile_rows"), min(weight.option("tile_columns"), columns)
