"""How a product with a resident weight runs on TPU: fused or by way of a dense one, and its tiles.

Pure arithmetic on sizes; nothing here touches a device.
"""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.pallas_kernels.layout import Plan
from jentropy.pallas_kernels.targets import Tpu
from jentropy.pallas_kernels.tiles import LANES, ceil_to

from .crossover import FUSED_ROWS

LEAST_VMEM = 16 << 20
ROWS = 16  # of a register of bfloat16: M is padded to these
FEW_ROWS = 8  # of a register of float32, where products are scaled by group
MOST_ROWS = 256  # of x in one pass over the weight
BUFFERS = 2  # of each block, so that copies run beside the arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class TpuPlan(Plan):
    """A product of x [m, k] with packed weights [k, n].

    Attributes:
      target: the TPU.
      tile_k, tile_n: of one step; the last column tile may stick out.
      vmem_bytes: of all blocks, the accumulators and an unpacked tile.
      vmem_limit_bytes: that the compiler may take: twice as much, where there is as much.
    """

    target: Tpu
    tile_k: int
    tile_n: int
    vmem_bytes: int
    vmem_limit_bytes: int

    @property
    def grid(self) -> tuple[int, int]:
        """Steps along N, then along K."""
        return -(-self.n // self.tile_n), self.k // self.tile_k


def make_plan(
    *,
    m: int,
    k: int,
    n: int,
    tile_k: int,
    tile_n: int,
    bits_per_weight: float,
    accumulators: int,
    target: Tpu,
    variant: str,
    unit: int = ROWS,
) -> TpuPlan:
    """Plans a product.

    Args:
      m: rows of x, all parts of a full-precision one counted.
      k, n: of the weight.
      tile_k, tile_n: of its layout.
      bits_per_weight: of its blocks.
      accumulators: float32 arrays of [m, tile_n] that are kept over the steps.
      target: the TPU.
      variant: of `FUSED_ROWS`, that the weight is most like.
      unit: rows that x is padded to a multiple of.
    """
    few, passes = m <= FUSED_ROWS[target.name][variant], max(1, -(-m // MOST_ROWS))
    fused = few and m > 0
    m, k, n = ceil_to(-(-m // passes), unit), ceil_to(k, tile_k), ceil_to(n, LANES)
    tile_n = min(tile_n, n)
    weights = int(tile_k * tile_n * bits_per_weight / 8)
    vmem = BUFFERS * (m * tile_k * 2 + weights + m * tile_n * 4) + accumulators * m * tile_n * 4
    # Unpacked tiles live in VMEM too where they do not fit in registers.
    vmem += 2 * tile_k * tile_n
    return TpuPlan(
        fused=fused and vmem <= target.vmem_bytes,
        few=few,
        passes=passes,
        m=m,
        k=k,
        n=n,
        target=target,
        tile_k=tile_k,
        tile_n=tile_n,
        vmem_bytes=vmem,
        vmem_limit_bytes=min(max(LEAST_VMEM, 2 * vmem), target.vmem_bytes),
    )
