"""How products with MXFP4 run on TPU."""

from __future__ import annotations

from dataclasses import replace

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import Tpu
from jentropy.pallas_kernels.tpu.columns import grouped_columns, plan_columns
from jentropy.pallas_kernels.tpu.grouped import GroupedPlan
from jentropy.pallas_kernels.tpu.plan import TpuPlan

from .orders import CHUNK

# Weights that a loop's body takes. The MXU's last results are waited for after every body.
BODY = {"v5e": 1 << 22, "v6e": 1 << 23, "v7x": 1 << 24}
DECODED_ROWS, DECODED_COLUMNS = 1024, 512  # in a step of `decode`, at the most


def plan(weight: ResidentTensor, rows: int, target: Tpu | None = None) -> TpuPlan:
    """How x of so many rows is multiplied by the packed matrix."""
    (k, n), target = weight.extent, targets.current_tpu() if target is None else target
    made = plan_columns(
        m=rows,
        k=k,
        n=n,
        unit=CHUNK,
        bits_per_weight=weight.bits_per_weight,
        target=target,
        variant="MXFP4",
    )
    readable = target.native_e2m1 or not weight.option("native")
    return replace(made, fused=made.fused and readable)


def grouped_plan(weight: ResidentTensor, rows: int, target: Tpu | None = None) -> GroupedPlan:
    """How x of so many rows is multiplied by the packed matrices of its groups."""
    return grouped_columns(plan(weight, rows, target), weight, rows)


def decode_tile(weight: ResidentTensor) -> tuple[int, int]:
    """Rows and columns that a step of `decode` decodes."""
    words = weight.arrays["words"]
    return min(DECODED_ROWS, 8 * words.shape[-2]), min(DECODED_COLUMNS, words.shape[-1])
