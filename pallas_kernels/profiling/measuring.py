"""Bundles of a step of a kernel against the cycles that memory needs for the step's bytes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jentropy.formats import Format
from jentropy.pallas_kernels.decode import tpu as decode
from jentropy.pallas_kernels.decode_matmul import tpu
from jentropy.pallas_kernels.decode_matmul.plan import Plan
from jentropy.pallas_kernels.decode_matmul.transforms import Product
from jentropy.pallas_kernels.layouts.tiles import ceil_to
from jentropy.pallas_kernels.layouts.tpu_window12 import chunks_of
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import TARGETS

from . import compiling, dense, schedule
from .weights import abstract_weight

SHAPE = (8192, 57344)  # of Llama-3-70B's gate and up: no format of it fits in VMEM as a whole
KERNELS = {"tpu_window12": "matmul_window12", "tpu_scaled": "matmul_scaled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One product of x [M, K] with a weight, or its decode to dense BF16, on one TPU.

    Attributes:
      tile: rows and columns of a step.
      schedule: of a step.
      hbm_cycles: in which memory moves the step's weights, scales and escapes; and what it decodes
        them to.
    """

    tile: tuple[int, int]
    schedule: schedule.Schedule
    hbm_cycles: float

    @property
    def ratio(self) -> float:
        """Bundles for a cycle of memory: below 1, memory is what the kernel waits for."""
        return self.schedule.bundles / self.hbm_cycles

    def cycles(self, weights: int) -> float:
        """The longer of bundles and memory's cycles, for a number of weights."""
        tile_k, tile_n = self.tile
        return max(self.schedule.bundles, self.hbm_cycles) * weights / (tile_k * tile_n)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        own = self.schedule
        return {
            "tile": list(self.tile),
            "ratio": round(self.ratio, 4),
            "bundles": round(own.bundles, 1),
            "upper": round(own.upper, 1),
            "hot": round(own.hot, 1),
            "hbm_cycles": round(self.hbm_cycles, 1),
            "spills": round(own.spills, 1),
            "slots": {name: round(count, 1) for name, count in own.slots.items()},
            "loops": [list(loop) for loop in own.loops],
        }


def product_of(weight: ResidentTensor, target: str) -> Any:
    """The function (x, leaves of weight) -> x @ weight.T that a target's program contains."""
    product = Product(
        kernel=tpu.product,
        transpose_w=weight.turned,
        x_dtype=jnp.dtype(jnp.bfloat16),
        out_dtype=jnp.dtype(jnp.float32),
        full_precision=False,
        interpret=False,
    )
    return lambda x, w: tpu.product(x, w, product, TARGETS[target])


def plan_of(weight: ResidentTensor, m: int, target: str) -> Plan:
    """How that product runs."""
    return tpu.plan_product(weight, m, TARGETS[target])


def measure(
    dump: Path, target: str, number_format: Format, m: int, shape: tuple[int, int] = SHAPE
) -> Figures:
    """Compiles the fused product of x [m, K] with a weight of a format, and reads its schedule."""
    k, n = shape
    weight = abstract_weight(number_format, k, n)
    plan = plan_of(weight, m, target)
    x = jax.ShapeDtypeStruct((m, k), jnp.bfloat16)
    _compile(dump, target, product_of(weight, target), x, weight)
    options = dict(weight.options)
    rest = (
        max(0, chunks_of(plan.tile_k * plan.tile_n) - options["inline"])
        if "inline" in options
        else 0
    )
    own = schedule.read(dump, KERNELS[weight.layout], steps=plan.grid[1], trips=rest)
    step = weight.nbytes / (plan.grid[0] * plan.grid[1])
    return Figures(
        tile=(plan.tile_k, plan.tile_n), schedule=own, hbm_cycles=TARGETS[target].hbm_cycles(step)
    )


def measure_decode(
    dump: Path, target: str, number_format: Format, shape: tuple[int, int] = SHAPE
) -> Figures:
    """The same of its decode to dense BF16."""
    weight = abstract_weight(number_format, *shape)
    kernel = decode.KERNELS[weight.layout]
    tile_k, tile_n = tile = kernel.tile(weight)
    _compile(dump, target, lambda w: decode.dense(w, jnp.dtype(jnp.bfloat16)), weight)
    rest = chunks_of(tile_k * tile_n) if "counts" in weight.arrays else 0
    own = schedule.read(dump, kernel.NAME, steps=shape[0] // tile_k, trips=rest)
    step = weight.nbytes * tile_k * tile_n / (shape[0] * shape[1]) + 2 * tile_k * tile_n
    return Figures(tile=tile, schedule=own, hbm_cycles=TARGETS[target].hbm_cycles(step))


def measure_dense(dump: Path, target: str, m: int, shape: tuple[int, int] = SHAPE) -> Figures:
    """The same as `measure` of the dense product."""
    k, n = shape
    tile_k, tile_n = dense.TILE
    x = jax.ShapeDtypeStruct((ceil_to(m, 16), k), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((k, n), jnp.bfloat16)
    _compile(dump, target, dense.multiply, x, w)
    own = schedule.read(dump, dense.NAME, steps=k // tile_k)
    cycles = TARGETS[target].hbm_cycles(2 * tile_k * tile_n)
    return Figures(tile=dense.TILE, schedule=own, hbm_cycles=cycles)


def _compile(dump: Path, target: str, function: Any, *arguments: Any) -> None:
    for old in dump.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    compiling.compile_for(target, function, *arguments)
