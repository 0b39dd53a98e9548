"""How products with scaled codes run on TPU, and which of the kernel's ways they take."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.integers import is_integer, offset_of
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import Tpu
from jentropy.pallas_kernels.tiles import LANES
from jentropy.pallas_kernels.tpu import grouped
from jentropy.pallas_kernels.tpu.grouped import GroupedPlan
from jentropy.pallas_kernels.tpu.plan import FEW_ROWS, ROWS, TpuPlan, make_plan

from .blocks import TILE_COLUMNS

ACCUMULATORS = 1
DECODED_COLUMNS = 512  # in a step of `decode`
SHORT = 64  # rows of a group that make scaling products dear for many rows of x
MANY = 64  # rows of x, for other scales than powers of two


def plan(weight: ResidentTensor, rows: int, target: Tpu | None = None) -> TpuPlan:
    """How x of so many rows is multiplied by the packed matrix."""
    k, n = weight.extent
    return make_plan(
        m=rows,
        k=k,
        n=n,
        tile_k=weight.option("tile_rows"),
        tile_n=tile_columns(weight),
        bits_per_weight=weight.bits_per_weight,
        accumulators=ACCUMULATORS,
        target=targets.current_tpu() if target is None else target,
        variant=variant_of(weight),
        unit=FEW_ROWS if weight.option("group") and rows <= FEW_ROWS else ROWS,
    )


def grouped_plan(weight: ResidentTensor, rows: int, target: Tpu | None = None) -> GroupedPlan:
    """How x of so many rows is multiplied by the packed matrices of its groups."""
    return grouped.make_plan(
        plan(weight, rows, target),
        rows,
        weight.stack[0],
        bits_per_weight=weight.bits_per_weight,
        unit=max(LANES, weight.option("block")),
        accumulators=ACCUMULATORS,
    )


def variant_of(weight: ResidentTensor) -> str:
    """The variant with budgets that a weight is most like."""
    element, group = weight.number_format.element, weight.option("group")
    if element.code_bits == 4:
        blocks = "row" if not group else "g32" if group <= SHORT else "g128"
        return f"INT4 {blocks}" + " zeros" * ("zero" in weight.arrays)
    if is_integer(element):
        return "INT8 row"
    if not group:
        return "FP8 row"
    return "MXFP8" if weight.arrays["scale"].dtype == jnp.uint8 else "FP8 128x128"


def tile_columns(weight: ResidentTensor) -> int:
    """Columns of a tile at the most.

    A step of short groups or of codes of four bits is short of bytes for what every step costs.
    """
    short = 0 < weight.option("group") <= SHORT or weight.number_format.element.code_bits == 4
    return 2 * TILE_COLUMNS if short else TILE_COLUMNS


def decode_tile(weight: ResidentTensor) -> tuple[int, int]:
    """Rows and columns that a step of `decode` decodes."""
    return weight.option("tile_rows"), min(DECODED_COLUMNS, weight.arrays["words"].shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a kernel is specialised for.

    Attributes:
      element: name of the element format.
      bits: of a code.
      group: rows that share a scale; 0: all.
      block: columns that share a scale that is prefetched to scalar memory; 0: none does.
      shift: added to E8M0 codes.
      zeros: how zero points come off: "product", "each" or "" (there are none).
      offset: added to zero points, whether there is an array of them or not.
      parts: bfloat16 parts of zero * scale in the product.
      expanded: bfloat16 parts of the scaled weights that the kernel multiplies by; 0: it scales
        products instead.
      native: `Tpu.native_e4m3fn`.
      depth: `Tpu.depth`.
    """

    element: str
    bits: int
    group: int
    block: int
    shift: int
    zeros: str
    offset: int
    parts: int
    expanded: int
    native: bool
    depth: int


def kind_of(weight: ResidentTensor, rows: int, target: Tpu) -> Kind:
    """The kernel for a weight and rows of x."""
    group, block = weight.option("group"), weight.option("block")
    offset, asymmetric = offset_of(weight.number_format.element), "zero" in weight.arrays
    zeros, parts = "", 3
    if asymmetric or offset:
        zeros = "product" if weight.option("narrow") and group else "each"
    if weight.arrays["scale"].dtype == jnp.bfloat16:
        parts = 2 if asymmetric else 1
    expanded = 0
    if 0 < group <= SHORT and not weight.option("block"):
        if weight.arrays["scale"].dtype == jnp.uint8 and not zeros:
            expanded = int(rows > target.scaled_products_rows)
        elif rows > MANY:
            expanded = 2 if weight.arrays["scale"].dtype == jnp.bfloat16 else 3
    return Kind(
        element=weight.number_format.element.name,
        bits=weight.number_format.element.code_bits,
        group=group,
        block=block if group else 0,
        shift=weight.option("shift"),
        zeros=zeros,
        offset=offset,
        parts=parts,
        expanded=expanded,
        native=target.native_e4m3fn,
        depth=target.depth,
    )


def depth_of(kind: Kind, plan: TpuPlan) -> int:
    """Rows of a product where groups have scales."""
    # To repeat more rows of x so often costs more than a shallow product.
    if kind.group <= LANES // 2 and plan.m > FEW_ROWS:
        return kind.group
    whole = plan.tile_k // (2 if kind.bits == 4 else 1)
    return min(max(kind.depth, kind.group), whole)
