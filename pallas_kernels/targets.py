"""The TPU generations and Hopper GPUs that kernels are made for, and what they differ in.

To add one: a `Tpu` in `TPUS` or a `Gpu` in `GPUS`, the names that JAX gives its devices in `KINDS`;
of a TPU also budgets by `python -m jentropy.pallas_kernels.profile`. A GPU that is not in `KINDS`
but has compute capability 9.0 runs as an H100.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import jax

logger = logging.getLogger(__name__)

PLATFORMS = ("gpu", "cuda", "rocm")
CAPABILITY = "9.0"  # Hopper's: WGMMA is of no other generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Tpu:
    """A TPU generation.

    Attributes:
      clock_hz: of a core, inferred.
      bytes_per_second: of its HBM, from the data sheet; of one TensorCore on v7x.
      vmem_bytes: on-chip memory that a kernel may ask for.
      depth: rows of weights that the MXU takes at a time.
      native_e4m3fn: whether the MXU reads E4M3 as it is stored. If not it reads e4m3b11fnuz, whose
        numbers are 2^-4 as large and which has NaN where E4M3 has -0.
      native_e2m1: whether float4_e2m1fn is converted by an instruction.
      vector_bf16: whether vector units multiply bfloat16; if not they go by way of float32.
      scaled_products_rows: rows of x up to which scaling products with short groups by powers of
        two is faster than scaling the weights.
    """

    name: str
    clock_hz: float
    bytes_per_second: float
    vmem_bytes: int
    depth: int
    native_e4m3fn: bool
    native_e2m1: bool
    vector_bf16: bool
    scaled_products_rows: int

    @property
    def integer_unit(self) -> float:
        """What an integer below 16, read as the MXU's eight-bit float, must be multiplied by."""
        return 2.0**9 if self.native_e4m3fn else 2.0**13

    def hbm_cycles(self, n_bytes: float) -> float:
        """Cycles in which memory moves a number of bytes."""
        return n_bytes / self.bytes_per_second * self.clock_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A Hopper GPU.

    Attributes:
      multiprocessors: that it has.
      bytes_per_second: that a copy reaches, about 0.9 of the data sheet's.
      cache_bytes_per_second: that come through the cache to all multiprocessors: an H200's was
        measured, others have as many for their clocks.
      flops_per_second: of dense BF16 products, that large ones reach.
      shared_bytes: shared memory that a block of threads may ask for.
      fused_rows: rows of x up to which the fused kernel is taken to be the faster.
    """

    name: str
    multiprocessors: int
    bytes_per_second: float
    flops_per_second: float
    cache_bytes_per_second: float = 5.0e12
    shared_bytes: int = 232448
    fused_rows: int = 256


TPUS = {
    target.name: target
    for target in (
        Tpu(
            name="v5e",
            clock_hz=1.503e9,
            bytes_per_second=8.2e11,
            vmem_bytes=96 << 20,
            depth=128,
            native_e4m3fn=False,
            native_e2m1=False,
            vector_bf16=False,
            scaled_products_rows=64,
        ),
        Tpu(
            name="v6e",
            clock_hz=1.755e9,
            bytes_per_second=1.64e12,
            vmem_bytes=96 << 20,
            depth=256,
            native_e4m3fn=False,
            native_e2m1=False,
            vector_bf16=True,
            scaled_products_rows=32,
        ),
        Tpu(
            name="v7x",
            clock_hz=2.2e9,
            bytes_per_second=3.7e12,
            vmem_bytes=48 << 20,
            depth=256,
            native_e4m3fn=True,
            native_e2m1=True,
            vector_bf16=True,
            scaled_products_rows=8,
        ),
    )
}
GPUS = {
    target.name: target
    for target in (
        Gpu(name="h200", multiprocessors=132, bytes_per_second=4.24e12, flops_per_second=7.5e14),
        Gpu(name="h100", multiprocessors=132, bytes_per_second=3.0e12, flops_per_second=7.0e14),
        Gpu(
            name="h100-pcie",
            multiprocessors=114,
            bytes_per_second=1.8e12,
            flops_per_second=5.5e14,
            cache_bytes_per_second=3.8e12,
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
    "NVIDIA H200": "h200",
    "NVIDIA GH200 480GB": "h200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
}


def backend_of(device: jax.Device) -> str:
    """The backend whose kernels a device can run: "tpu", "gpu" or "reference".

    Of a GPU that has none the log says why, once.

    Example:
      >>> import jax
      >>> backend_of(jax.devices("cpu")[0])
      'reference'
    """
    if KINDS.get(device.device_kind) in TPUS:
        return "tpu"
    if device.platform not in PLATFORMS:
        return "reference"
    if reason := why_not(device):
        _log(reason)
    return "reference" if reason else "gpu"


def why_not(device: jax.Device) -> str:
    """Why a GPU takes the reference backend; nothing of one that does not, or of other devices.

    Args:
      device: of JAX.

    Returns:
      A sentence, or "".

    Example:
      >>> import jax
      >>> why_not(jax.devices("cpu")[0])
      ''
    """
    capability = getattr(device, "compute_capability", None)
    if device.platform not in PLATFORMS or capability == CAPABILITY:
        return ""
    return (
        f"{device.device_kind}: no kernels for compute capability {capability} (they need "
        f"{CAPABILITY}); products decode the weight in plain JAX"
    )


@functools.cache
def _log(message: str) -> None:
    logger.warning(message)


_TAKEN_FOR: ContextVar[str | None] = ContextVar("taken_for", default=None)


@contextmanager
def taken_for(name: str) -> Iterator[None]:
    """Within, programs are traced for a TPU that need not be there.

    Args:
      name: a key of `TPUS`.

    Example:
      >>> with taken_for("v6e"):
      ...     current_tpu().name
      'v6e'
    """
    token = _TAKEN_FOR.set(name)
    try:
        yield
    finally:
        _TAKEN_FOR.reset(token)


def current_tpu() -> Tpu:
    """This process's TPU; v5e, whose kernels read everything, stands for one that is unknown."""
    return TPUS[_TAKEN_FOR.get() or KINDS.get(jax.devices()[0].device_kind, "v5e")]


def current_gpu() -> Gpu:
    """This process's GPU; an H200 where there is none, as for ahead-of-time compilation."""
    device = jax.devices()[0]
    return GPUS["h200" if device.platform == "cpu" else KINDS.get(device.device_kind, "h100")]
