"""From how many rows of x on decoding to dense, and the dense product, beat the fused one.

All by static schedules, cycles for 2^20 weights: of the fused product, its passes counted, against
the decode and the dense product, each the longer of its schedule with waits and of memory. Between
rows that are measured cycles lie on a line; above the most rows of a pass both grow with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jentropy.pallas_kernels.tpu.plan import MOST_ROWS
from jentropy.pallas_kernels.variants import VARIANTS

from . import tpu

ROWS = (8, 16, 32, 64, 128, MOST_ROWS)
MOST = 1 << 14  # rows of x beyond which nobody asks
UNIT = 8  # rows that a crossover is a multiple of


def fused_rows(fused: Mapping[int, float], decode: float, dense: Mapping[int, float]) -> int:
    """The most rows for which the fused product is the faster; `MOST` where it always is.

    Args:
      fused, dense: cycles by rows of x.
      decode: cycles.

    Example:
      >>> fused_rows({8: 10, 256: 20}, 30, {8: 5, 256: 10})  # each pass costs ten more
      768
    """
    best = 0
    for rows in range(UNIT, MOST + 1, UNIT):
        passes = -(-rows // MOST_ROWS)
        other = decode + _at(rows, dense) if rows <= MOST_ROWS else decode + _scaled(rows, dense)
        if passes * _at(rows / passes, fused) > other:
            break
        best = rows
    return best


def _at(rows: float, cycles: Mapping[int, float]) -> float:
    return float(np.interp(rows, list(cycles), list(cycles.values())))


def _scaled(rows: int, cycles: Mapping[int, float]) -> float:
    return cycles[MOST_ROWS] * rows / MOST_ROWS


def measured(
    dump: Path, target: str, names: Sequence[str], shape: tuple[int, int]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Cycles by what is done, and `fused_rows`, of variants."""
    dense = {m: tpu.measure_dense(dump, target, m, shape).cycles for m in ROWS}
    for name in names:
        number_format = VARIANTS[name].number_format
        fused = {m: tpu.measure(dump, target, number_format, m, shape).cycles for m in ROWS}
        decode = tpu.measure_decode(dump, target, number_format, shape).cycles
        yield (
            name,
            {f"fused M={m}": round(c) for m, c in fused.items()}
            | {f"dense M={m}": round(c) for m, c in dense.items()}
            | {"decode": round(decode), "fused_rows": fused_rows(fused, decode, dense)},
        )
