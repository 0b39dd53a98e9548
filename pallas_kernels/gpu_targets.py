"""The Hopper GPUs that kernels are made for, and what they differ in.

To add one: a `GpuTarget` in `TARGETS` and the name that JAX gives it in `KINDS`. One that is not
there but has compute capability 9.0 runs as an H100.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import jax

logger = logging.getLogger(__name__)

PLATFORMS = ("gpu", "cuda", "rocm")
CAPABILITY = "9.0"  # Hopper's: WGMMA is of no other generation


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTarget:
    """A GPU.

    Attributes:
      multiprocessors: that it has.
      bytes_per_second: that a copy reaches, about 0.9 of the data sheet's.
      flops_per_second: of dense BF16 products, that large ones reach.
      shared_bytes: shared memory that a block of threads may ask for.
      fused_rows: rows of x up to which the fused kernel is taken to be the faster.
    """

    name: str
    multiprocessors: int
    bytes_per_second: float
    flops_per_second: float
    shared_bytes: int = 232448
    fused_rows: int = 256


TARGETS = {
    target.name: target
    for target in (
        GpuTarget(
            name="h200", multiprocessors=132, bytes_per_second=4.3e12, flops_per_second=7.5e14
        ),
        GpuTarget(
            name="h100", multiprocessors=132, bytes_per_second=3.0e12, flops_per_second=7.0e14
        ),
        GpuTarget(
            name="h100-pcie", multiprocessors=114, bytes_per_second=1.8e12, flops_per_second=5.5e14
        ),
    )
}
KINDS = {  # JAX's names of devices
    "NVIDIA H200": "h200",
    "NVIDIA GH200 480GB": "h200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
}


def runs_on(device: jax.Device) -> bool:
    """Whether a device has what the kernels need; logs why not, once, if it is another GPU."""
    if device.platform not in PLATFORMS:
        return False
    message = why_not(device)
    if message:
        _log(message)
    return not message


def why_not(device: jax.Device) -> str:
    """Why a GPU takes the reference backend; nothing of one that does not, or of other devices."""
    found = getattr(device, "compute_capability", None)
    if device.platform not in PLATFORMS or found == CAPABILITY:
        return ""
    return (
        f"{device.device_kind}: no kernels for compute capability {found} (they need "
        f"{CAPABILITY}); products decode the weight in plain JAX"
    )


@functools.cache
def _log(message: str) -> None:
    logger.warning(message)


def current_target() -> GpuTarget:
    """This process's GPU; an H200 where there is none, as for ahead-of-time compilation."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return TARGETS["h200"]
    return TARGETS[KINDS.get(device.device_kind, "h100")]
