"""The TPU generations that kernels are made for, and what they differ in.

To add one: a `Target` in `TARGETS`, the names that JAX gives its devices in `KINDS`, budgets by
`python -m jentropy.pallas_kernels.profile`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax


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


def current_kind() -> str:
    """JAX's name of this process's default device."""
    return jax.devices()[0].device_kind


def current_target() -> Target:
    """This process's TPU; v5e, whose kernels read everything, stands for one that is unknown."""
    return TARGETS[KINDS.get(current_kind(), "v5e")]
