"""How a product with a resident weight runs on TPU: fused or by way of a dense one, and its tiles.

Pure arithmetic on sizes; nothing here touches a device.
"""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.pallas_kernels.layouts.tiles import LANES, ceil_to

ROWS = 16  # of a register of bfloat16: M is padded to these
MOST_ROWS = 256  # of x in one pass over the weight
BUFFERS = 2  # of each block, so that copies run beside the arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A TPU generation.

    Attributes:
      clock_hz: of a core, inferred.
      bytes_per_second: of its HBM, from the data sheet; of one TensorCore on v7x.
      vmem_bytes: on-chip memory that a kernel may ask for.
      depth: rows of weights that the MXU takes at a time.
      native_e4m3fn: whether the MXU reads E4M3 as it is stored. If not it reads e4m3b11fnuz, whose
        numbers are 2^-4 as large and which has NaN where E4M3 has -0.
      fused_rows: rows of x up to which fused kernels are the faster.
      scaled_products_rows: rows of x up to which scaling products with short groups by powers of
        two is faster than scaling the weights.
    """

    name: str
    clock_hz: float
    bytes_per_second: float
    vmem_bytes: int
    depth: int
    native_e4m3fn: bool
    fused_rows: int
    scaled_products_rows: int

    @property
    def integer_unit(self) -> float:
        """What an integer below 16, read as the MXU's eight-bit float, must be multiplied by."""
        return 2.0**9 if self.native_e4m3fn else 2.0**13

    def hbm_cycles(self, n_bytes: float) -> float:
        """Cycles in which memory moves a number of bytes."""
        return n_bytes / self.bytes_per_second * self.clock_hz


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="v5e",
            clock_hz=1.503e9,
            bytes_per_second=8.2e11,
            vmem_bytes=96 << 20,
            depth=128,
            native_e4m3fn=False,
            fused_rows=2048,
            scaled_products_rows=64,
        ),
        Target(
            name="v6e",
            clock_hz=1.755e9,
            bytes_per_second=1.64e12,
            vmem_bytes=96 << 20,
            depth=256,
            native_e4m3fn=False,
            fused_rows=1024,
            scaled_products_rows=32,
        ),
        Target(
            name="v7x",
            clock_hz=2.2e9,
            bytes_per_second=3.7e12,
            vmem_bytes=48 << 20,
            depth=256,
            native_e4m3fn=True,
            fused_rows=256,
            scaled_products_rows=0,
        ),
    )
}
KINDS = {  # JAX's names of devices
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "v7x",
    "TPU v7x": "v7x",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A product of x [m, k] with packed weights [k, n].

    Attributes:
      fused: by the fused kernel; else the weight is decoded and multiplied densely.
      passes: over the weight, each for `m` rows of x.
      m, k, n: padded to tiles.
      tile_k, tile_n: of one step; the last column tile may stick out.
      vmem_bytes: of all blocks and the accumulators.
    """

    fused: bool
    passes: int
    m: int
    k: int
    n: int
    tile_k: int
    tile_n: int
    vmem_bytes: int

    @property
    def vmem_limit_bytes(self) -> int:
        """What the compiler may take: twice as much, for what it keeps between operations."""
        return max(16 << 20, 2 * self.vmem_bytes)

    @property
    def grid(self) -> tuple[int, int]:
        """Steps along N, then along K."""
        return -(-self.n // self.tile_n), self.k // self.tile_k


def plan(
    *,
    m: int,
    k: int,
    n: int,
    tile_k: int,
    tile_n: int,
    bits_per_weight: float,
    accumulators: int,
    target: Target,
) -> Plan:
    """Plans a product.

    Args:
      m: rows of x, all parts of a full-precision one counted.
      k, n: of the weight.
      tile_k, tile_n: of its layout.
      bits_per_weight: of its blocks.
      accumulators: float32 arrays of [m, tile_n] that are kept over the steps.
      target: the TPU.
    """
    fused, passes = 0 < m <= target.fused_rows, max(1, -(-m // MOST_ROWS))
    m, k, n = ceil_to(-(-m // passes), ROWS), ceil_to(k, tile_k), ceil_to(n, LANES)
    tile_n = min(tile_n, n)
    weights = int(tile_k * tile_n * bits_per_weight / 8)
    vmem = BUFFERS * (m * tile_k * 2 + weights + m * tile_n * 4) + accumulators * m * tile_n * 4
    # Unpacked tiles live in VMEM too where they do not fit in registers.
    vmem += 2 * tile_k * tile_n
    return Plan(
        fused=fused and vmem <= target.vmem_bytes,
        passes=passes,
        m=m,
        k=k,
        n=n,
        tile_k=tile_k,
        tile_n=tile_n,
        vmem_bytes=vmem,
    )
