"""Up to how many rows of x the fused product beats decoding to dense and the dense product.

By static schedules, in cycles for 2^20 weights, each the longer of the schedule with waits and of
memory: the passes of the fused product against the decode and the dense product. Cycles lie on
lines through the rows that are measured, and are no fewer than the MXU needs; those of dense
products of more rows than a pass has grow as it multiplies. Those of 16 rows and of decodes are the
budgets', so that a variant costs one compile. `tpu.crossover` has what comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jentropy.pallas_kernels.tpu.plan import MOST_ROWS
from jentropy.pallas_kernels.variants import VARIANTS

from . import budgets, tpu

# Kernels of these formats for many rows of x take the compiler minutes.
SLOW = ("INT4 g32", "INT4 g128", "INT4 g32 zeros", "INT4 g128 zeros")
MANY_OF_SLOW = 64  # rows of x that they are compiled for
MOST, UNIT = 1 << 11, 8  # rows of x: more seldom go through a layer; a crossover is a multiple
# Products of numbers in a cycle, from data sheets and inferred clocks.
MACS = {"v5e": 1 << 16, "v6e": 1 << 18, "v7x": 1 << 18}

Cycles = Mapping[int, float]  # by rows of x


def fused_rows(fused: Cycles, decode: float, dense: Cycles, macs: int) -> int:
    """The most rows for which the fused product is the faster; `MOST` where it always is.

    Args:
      macs: products of numbers in a cycle.

    Example:
      >>> fused_rows({16: 600, 256: 1200}, 1000, {16: 1200, 256: 1300}, 1 << 18)
      1280
    """
    row = tpu.UNIT / macs
    best = 0
    for rows in range(UNIT, MOST + 1, UNIT):
        passes = -(-rows // MOST_ROWS)
        once, first = rows / passes, min(rows, MOST_ROWS)
        by_passes = passes * max(_at(once, fused), once * row)
        by_decoding = decode + max(_at(first, dense), first * row) + (rows - first) * row
        if by_passes > by_decoding:
            break
        best = rows
    return best


def _at(rows: float, cycles: Cycles) -> float:
    """On the line through two rows that are measured: those around it, or the last ones."""
    known = sorted(cycles)
    i = next((i for i, m in enumerate(known[1:-1], 1) if rows <= m), len(known) - 1)
    low, high = known[i - 1], known[i]
    slope = (cycles[high] - cycles[low]) / (high - low)
    return cycles[low] + slope * max(0, rows - low)


def measured(dump: Path, target: str, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """`fused_rows` of variants."""
    dense = {m: tpu.measure_dense(dump, target, m).cycles for m in (budgets.ROWS, MOST_ROWS)}
    known = budgets.load()[target]
    for name in names:
        many = MANY_OF_SLOW if name in SLOW else MOST_ROWS
        measured = tpu.measure(dump, target, VARIANTS[name].number_format, many)
        fused = {budgets.ROWS: budgets.cycles(known[name]), many: measured.cycles}
        decode = budgets.cycles(known[name + budgets.DECODE])
        yield name, fused_rows(fused, decode, dense, MACS[target])
