"""Compiles for an H200 that is not there, and reads what the kernels are made of.

The compilers are those of the CUDA plugin of jax and of the CUDA toolkit, extra `aot`.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jentropy.errors import UnsupportedError
from jentropy.pallas_kernels.conversion import to_resident
from jentropy.pallas_kernels.decode_matmul import gpu as products
from jentropy.pallas_kernels.decode_matmul import gpu_window12 as gpu_kernel
from jentropy.pallas_kernels.decode_matmul.gpu_plan import Plan
from jentropy.pallas_kernels.gpu_targets import TARGETS
from jentropy.pallas_kernels.layouts import fragments
from jentropy.pallas_kernels.resident import ResidentTensor

from . import sass

PLUGINS = {"jax_cuda13_plugin": "jax-cuda13-plugin", "jax_plugins.xla_cuda13": "jax-cuda13-pjrt"}
ISSUE_SLOTS = 128  # warps' instructions times lanes that a multiprocessor starts in a cycle
CLOCK_HZ = 1.98e9


def missing() -> list[str]:
    """Packages that are needed and not installed."""

    def absent(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is None
        except ModuleNotFoundError:
            return True

    found = [package for module, package in PLUGINS.items() if absent(module)]
    for tool, package in (("ptxas", "nvidia-cuda-nvcc"), ("nvdisasm", "nvidia-cuda-nvdisasm")):
        try:
            sass.path_of(tool)
        except UnsupportedError:
            found.append(package)
    return found


def prepare(dump: Path) -> None:
    """Sets the environment of the compilers, which write the code of kernels to `dump`.

    Raises:
      UnsupportedError: a package is not installed.
    """
    if missing():
        raise UnsupportedError(
            "no compiler for NVIDIA GPUs",
            expected=", ".join((*PLUGINS.values(), "nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm")),
            found=f"no {', '.join(missing())}",
            hint="pip install 'jentropy[aot]'",
        )
    os.environ.update(MOSAIC_GPU_DUMP_TO=str(dump), MOSAIC_GPU_DUMP_PTX="1")
    flags = os.environ.get("XLA_FLAGS", "")
    if "autotune_level" not in flags:  # nothing can be run
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0"
    jax.config.update("jax_platforms", "cpu")


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {name: metadata.version(name) for name in ("jax", "jax-cuda13-pjrt", "nvidia-cuda-nvcc")}


def config() -> str:
    """What XLA must know of an H200."""
    return (resources.files("jentropy.pallas_kernels.profiling") / "h200.txtpb").read_text()


def topology() -> Any:
    """An H200."""
    return topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=config())


def compile_for(dump: Path, function: Callable[..., Any], *arguments: Any) -> list[sass.Kernel]:
    """Compiles a function of abstract arguments; the Pallas kernels in it.

    Raises:
      jax.errors.JaxRuntimeError: the compiler's own error.
    """
    place = SingleDeviceSharding(topology().devices[0])
    given = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments
    )
    for old in dump.iterdir():
        old.unlink()
    jax.jit(function).lower(*given).compile()
    return sass.read(dump)


def abstract_weight(n: int, k: int) -> ResidentTensor:
    """What `to_resident` makes of a BF16 weight [n, k] with Gaussian numbers, without data."""
    return to_resident(jax.ShapeDtypeStruct((n, k), jnp.bfloat16), "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is known of a product.

    Attributes:
      plan: how it runs.
      kernel: its code.
      loop: operations of the loop over steps, for a thread.
      pairs: of weights that a thread decodes in a round of it.
    """

    plan: Plan
    kernel: sass.Kernel
    loop: Counter[str]
    pairs: int

    @property
    def integer_per_pair(self) -> float:
        """Operations on the integer units, per pair of weights."""
        return sum(self.loop[name] for name in sass.INTEGER) / self.pairs

    @property
    def slots_per_pair(self) -> float:
        """Instructions of any kind, per pair of weights."""
        return self.loop.total() / self.pairs

    @property
    def issue_share(self) -> float:
        """Of the slots that there are while memory moves the weights' bytes."""
        target = TARGETS["h200"]
        pairs = target.bytes_per_second / 3  # three bytes hold two weights
        slots = target.multiprocessors * ISSUE_SLOTS * CLOCK_HZ
        return self.slots_per_pair * pairs / slots

    def held(self) -> dict[str, float]:
        """What budgets hold."""
        return {
            "registers": self.kernel.registers,
            "spill_bytes": self.kernel.spill_bytes,
            "integer_per_pair": round(self.integer_per_pair, 3),
            "slots_per_pair": round(self.slots_per_pair, 3),
        }


def plan_of(m: int, n: int, k: int) -> Plan:
    """How the product of x [m, k] with a weight [n, k] runs."""
    return products.plan_product(abstract_weight(n, k), m, TARGETS["h200"])


def measure(dump: Path, m: int, n: int, k: int) -> Figures:
    """Compiles a pass of the fused product of x [m, k] with a weight [n, k], and reads its code."""
    weight, plan = abstract_weight(n, k), plan_of(m, n, k)
    x = jax.ShapeDtypeStruct((plan.m, plan.k), jnp.bfloat16)

    def one_pass(x: Any, weight: Any) -> Any:
        return gpu_kernel.multiply(x, weight, plan, out_dtype=jnp.bfloat16, interpret=False)

    (kernel,) = compile_for(dump, one_pass, x, weight)
    loop = kernel.main_loop(plan.config.tile_k // fragments.COLUMNS)
    return Figures(plan=plan, kernel=kernel, loop=loop, pairs=plan.config.tile_k // 4)
