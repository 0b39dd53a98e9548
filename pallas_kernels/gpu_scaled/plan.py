"""How products with scaled codes run on Hopper."""

from __future__ import annotations

import math

import jax

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.hopper import tuning
from jentropy.pallas_kernels.hopper.plan import (
    MOST_ROWS,
    TALL_ROWS,
    TILES_K,
    UNIT,
    WARPGROUPS,
    HopperPlan,
    Traits,
    make_plan,
)
from jentropy.pallas_kernels.resident import ResidentTensor

from .blocks import Kind
from .numbers import Decoding

# Of x where groups have sums of their own: registers hold these and the total; in tall tiles both,
# by the columns of a step, `TILES_K`: in long ones the next words take some as well.
ROWS_OF_SUMS = {32: 24, 64: 64, 128: 128}
TALL_ROWS_OF_SUMS = {32: (8, 8, 8), 64: (16, 16, 16), 128: (40, 48, 64)}


def plan(weight: ResidentTensor, rows: int, target: targets.Gpu | None = None) -> HopperPlan:
    """How x of so many rows is multiplied by the packed matrix: as tuned, if it was."""
    n, k = weight.extent
    name = f"{weight.layout} {weight.number_format.element.name} {weight.option('group')}"
    tuned = tuning.load(jax.devices()[0].device_kind, name)
    return make_plan(
        m=rows,
        k=k,
        n=n,
        traits=traits(weight),
        target=tuned.target(targets.current_gpu() if target is None else target),
        config=tuned.config(rows, k, n),
    )


def traits(weight: ResidentTensor) -> Traits:
    """What a plan must know."""
    decoding = Decoding.of(weight, False)
    lead = weight.arrays["words"].ndim - 4
    of_columns = sum(
        math.prod(weight.arrays[name].shape[lead + 2 :])
        * weight.arrays[name].dtype.itemsize
        * (UNIT // columns)
        for name, columns in zip(decoding.copied(), decoding.columns(), strict=True)
    )
    sums = decoding.kind is Kind.NUMBERS
    return Traits(
        unit_bytes=WARPGROUPS * of_columns,
        tiles_k=TILES_K if decoding.element.words == 1 else TILES_K[1:],
        most_rows=ROWS_OF_SUMS[decoding.group] if sums else MOST_ROWS,
        tall_rows=TALL_ROWS_OF_SUMS[decoding.group] if sums else TALL_ROWS,
    )
