"""Plans of kernels whose steps go over whole columns: all of K, if it is not too long.

Sums over K then stay where they are made, and the MXU's last results are waited for once for every
few columns of the matrix. The columns of a step are taken some at a time, in a loop, whose body is
as much program as the compiler takes in a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array

from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import Tpu
from jentropy.pallas_kernels.tiles import LANES, ceil_to

from . import grouped
from .crossover import FUSED_ROWS
from .plan import BUFFERS, LEAST_VMEM, MOST_ROWS, ROWS, TpuPlan

ACCUMULATORS = 1  # of every step
WIDE = 256  # columns of a product
MOST_K = 16384  # rows of a step
STEP = 1 << 24  # weights of a step, at the most
# Steps that a matrix should have: the first block is waited for with nothing to do, but each step
# costs some hundred cycles, which memory's time hides where kernels are well below it.
STEPS = {"v5e": 8, "v6e": 8, "v7x": 4}
EVEN = 1.5  # times as many steps are taken, if they divide the columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsPlan(TpuPlan):
    """A product whose steps take whole columns."""


def plan_columns(
    *,
    m: int,
    k: int,
    n: int,
    unit: int,
    bits_per_weight: float,
    target: Tpu,
    variant: str,
    rows: int = 1,
) -> ColumnsPlan:
    """Plans a product of x [m, k].

    Args:
      m: rows of x, all parts of a full-precision one counted.
      k, n: of the weight.
      unit: rows that a step has a multiple of.
      bits_per_weight: of its blocks.
      target: the TPU.
      variant: of `FUSED_ROWS`.
      rows: of the kernel's left operand for each of x.
    """
    few, passes = m <= FUSED_ROWS[target.name][variant], max(1, -(-m // MOST_ROWS))
    k, n, m_padded = ceil_to(k, unit), ceil_to(n, LANES), ceil_to(-(-m // passes), ROWS)
    tile_k = _tile_rows(k, unit)
    tiles = max(-(-tile_k * n // STEP), min(STEPS[target.name], n // (2 * WIDE)), 1)
    divisors = (d for d in range(tiles, int(EVEN * tiles) + 1) if n % (d * WIDE) == 0)
    tile_n = min(n, ceil_to(-(-n // next(divisors, tiles)), WIDE))
    left = m_padded if rows == 1 else rows * m
    weights = int(tile_k * tile_n * bits_per_weight / 8)
    vmem = BUFFERS * (left * tile_k * 2 + weights + m_padded * tile_n * 4)
    vmem += ACCUMULATORS * m_padded * tile_n * 4
    return ColumnsPlan(
        fused=few and m > 0 and vmem <= target.vmem_bytes,
        few=few,
        passes=passes,
        m=m_padded,
        k=k,
        n=n,
        target=target,
        tile_k=tile_k,
        tile_n=tile_n,
        vmem_bytes=vmem,
        vmem_limit_bytes=min(max(LEAST_VMEM, 2 * vmem), target.vmem_bytes),
    )


def grouped_columns(
    plan: TpuPlan, weight: ResidentTensor, rows: int, *, least: int = ROWS, spread: int = 1
) -> grouped.GroupedPlan:
    """How x of so many rows is multiplied by matrices of groups, each as `plan_columns` says.

    Args:
      least, spread: see `grouped.make_plan`.
    """
    return grouped.make_plan(
        plan,
        rows,
        weight.stack[0],
        bits_per_weight=weight.bits_per_weight,
        unit=WIDE,
        accumulators=ACCUMULATORS,
        least=least,
        spread=spread,
    )


def _tile_rows(k: int, unit: int) -> int:
    """All rows, or the most that a step takes and that divide them: eight units, if they do.

    A block of an array that has a row for each unit is all of it, or a multiple of eight.
    """
    blocks = k // unit
    divide = [d for d in range(1, MOST_K // unit + 1) if blocks % d == 0]
    return unit * max(divide, key=lambda d: (d == blocks or d % 8 == 0, d))


def body_columns(tile_k: int, tile_n: int, weights: int) -> int:
    """Columns of a step that the loop's body takes: a divisor of `tile_n`.

    Args:
      weights: of a body, about.
    """
    if tile_n % WIDE:
        return tile_n
    wide = tile_n // WIDE
    fits = (d for d in range(1, wide + 1) if wide % d == 0 and d * WIDE * tile_k <= weights)
    return WIDE * max(fits, default=1)


def over_columns(wide: int, columns: int, run: Callable[[Any], None]) -> None:
    """run(first) for every `columns` of `wide`, in a kernel."""
    if columns == wide:
        run(jnp.int32(0))
        return

    @pl.loop(np.int32(0), np.int32(wide // columns))
    def _(i: Array) -> None:
        run(i * columns)
