"""How products with NVFP4 run on TPU, and in which of two ways.

few rows of x    each is spread over 16, one for every block of a chunk: products with codes
                 are sums by block, which are multiplied by scales
more             codes are multiplied by scales, exactly, as bfloat16
"""

from __future__ import annotations

from dataclasses import replace

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import Tpu
from jentropy.pallas_kernels.tpu.columns import WIDE, grouped_columns, plan_columns
from jentropy.pallas_kernels.tpu.grouped import ROOM, GroupedPlan
from jentropy.pallas_kernels.tpu.plan import TpuPlan

from .layout import BLOCKS, CHUNK, TILE

FEW = {"v5e": 0, "v6e": 8, "v7x": 4}  # rows of x, at the most
FEW_ROWS = (1, 2, 4, 8)  # to which they are filled up
# Weights that a loop's body takes, and columns of a product: where vector units are all that is
# waited for, more of both.
BODY = {"v5e": 1 << 22, "v6e": 1 << 24, "v7x": 1 << 22}
PRODUCT = {"v5e": WIDE, "v6e": 8 * WIDE, "v7x": WIDE}
DECODED_COLUMNS = 512  # in a step of `decode`, at the most


def plan(weight: ResidentTensor, rows: int, target: Tpu | None = None) -> TpuPlan:
    """How x of so many rows is multiplied by the packed matrix."""
    (k, n), target = weight.extent, targets.current_tpu() if target is None else target
    few = 0 < rows <= FEW[target.name]
    made = plan_columns(
        m=rows,
        k=k,
        n=n,
        unit=TILE,
        bits_per_weight=weight.bits_per_weight,
        target=target,
        variant="NVFP4",
        rows=BLOCKS if few else 1,
    )
    made = replace(made, fused=made.fused and readable(weight, target))
    return replace(made, m=next(m for m in FEW_ROWS if m >= rows)) if few else made


def readable(weight: ResidentTensor, target: Tpu) -> bool:
    """Whether a TPU converts codes as words have them."""
    return target.native_e2m1 or not weight.option("native")


def is_few(plan: TpuPlan) -> bool:
    """Whether rows of x are spread."""
    return plan.m <= FEW[plan.target.name]


def grouped_plan(weight: ResidentTensor, rows: int, target: Tpu | None = None) -> GroupedPlan:
    """How x of so many rows is multiplied by the packed matrices of its groups.

    Where groups have few rows, windows have as many as are few.
    """
    target = targets.current_tpu() if target is None else target
    most = FEW[target.name]
    if not most or ROOM * rows > most * weight.stack[0]:
        return grouped_columns(plan(weight, rows, target), weight, rows)
    few = plan(weight, most, target)
    return grouped_columns(few, weight, rows, least=most, spread=BLOCKS)


def decode_tile(weight: ResidentTensor) -> tuple[int, int]:
    """Rows and columns that a step of `decode` decodes."""
    words = weight.arrays["words"]
    chunks = 8 * words.shape[-2] // CHUNK
    return CHUNK * (4 if chunks % 4 == 0 else 2), min(DECODED_COLUMNS, words.shape[-1])
