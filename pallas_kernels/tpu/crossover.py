"""Up to how many rows of x the fused product is the faster one, by TPU and variant.

From static schedules: `python -m jentropy.pallas_kernels.profile --tpu v5e --crossover` prints a
line of this table; `profiling.crossover` says how. With more rows the weight is decoded to dense
BF16, which XLA's product takes. A format that is no variant has the rows of the one that it is
most like.
"""

from __future__ import annotations

FUSED_ROWS: dict[str, dict[str, int]] = {
    "v5e": {},
    "v6e": {},
    "v7x": {},
}
