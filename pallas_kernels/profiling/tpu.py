"""Bundles of a step of a TPU kernel against the cycles that memory needs for the step's bytes.

    bundles   of a step of the grid: its instruction words, loops times their trips. What only the
              first or the last step along K does is spread over the steps; copies are included
    HBM       cycles in which memory moves the step's weights, scales and escapes, and the numbers
              that they are decoded to
    ratio     bundles / HBM cycles
    waits     the same with the empty bundles in which the MXU is waited for: below 1, memory is
              what the kernel waits for
    dense     of a product, the longer of bundles with waits and memory's cycles, against that of
              the dense BF16 product of the same weights
    slots     operations of the step by unit, FILL and SPILL being registers from and to memory

Waits for copies are in none of it, so it is a lower bound of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy.formats import Format
from jentropy.pallas_kernels.conversion import to_resident
from jentropy.pallas_kernels.fused import Product, as_read, kernels_of, one_product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import TPUS, taken_for
from jentropy.pallas_kernels.tiles import ceil_to
from jentropy.pallas_kernels.tpu.plan import TpuPlan
from jentropy.pallas_kernels.tpu_window12.layout import chunks_of
from jentropy.pallas_kernels.variants import VARIANTS, abstract_weight

from . import compiling, dense, schedule
from .budgets import DECODE, name_of

SHAPE = (8192, 57344)  # of Llama-3-70B's gate and up: no format of it fits in VMEM as a whole
ON_CHIP = 128 << 20  # bytes that a TPU's fast memory holds, at the most
DENSE = "dense BF16"
UNIT = 1 << 20  # weights that bundles and spills of budgets are of
DEFAULT_ROWS = ()  # those that have budgets
COLUMNS = {"format": 22, "M": 3, "tile": 9, "bundles": 7, "HBM": 5, "ratio": 5}
COLUMNS |= {"waits": 5, "dense": 5}
COLUMNS |= dict.fromkeys(schedule.SLOTS, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One product of x [M, K] with a weight, or its decode to dense BF16, on one TPU.

    Attributes:
      m: rows of x; None of a decode.
      tile: rows and columns of a step.
      schedule: of a step.
      hbm_cycles: in which memory moves the step's weights, scales and escapes; and what it decodes
        them to.
      dense_cycles: for 2^20 weights of the dense product; None of a decode.
    """

    m: int | None
    tile: tuple[int, int]
    schedule: schedule.Schedule
    hbm_cycles: float
    dense_cycles: float | None = None

    @property
    def ratio(self) -> float:
        """Bundles for a cycle of memory."""
        return self.schedule.bundles / self.hbm_cycles

    @property
    def with_waits(self) -> float:
        """The same with empty bundles: below 1, memory is what the kernel waits for."""
        return self.schedule.cycles / self.hbm_cycles

    @property
    def share(self) -> float:
        """Of 2^20 weights that a step is."""
        return UNIT / (self.tile[0] * self.tile[1])

    @property
    def cycles(self) -> float:
        """The longer of the schedule's and memory's, for 2^20 weights."""
        return max(self.schedule.cycles, self.hbm_cycles) * self.share

    def budgeted(self) -> dict[str, float]:
        """What budgets hold."""
        return {
            "ratio": self.ratio,
            "with_waits": self.with_waits,
            "bundles": self.schedule.bundles * self.share,
            "spills": self.schedule.spills * self.share,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        step = self.schedule
        dense_share = (
            {} if self.dense_cycles is None else {"dense_share": self.cycles / self.dense_cycles}
        )
        return {
            "tile": list(self.tile),
            "ratio": round(self.ratio, 4),
            "with_waits": round(self.with_waits, 4),
            "bundles": round(step.bundles, 1),
            "cycles": round(step.cycles, 1),
            "upper": round(step.upper, 1),
            "hot": round(step.hot, 1),
            "hbm_cycles": round(self.hbm_cycles, 1),
            "spills": round(step.spills, 1),
            "slots": {name: round(count, 1) for name, count in step.slots.items()},
            "loops": [list(loop) for loop in step.loops],
            **{name: round(value, 4) for name, value in dense_share.items()},
        }

    def cells(self) -> list[str]:
        """A row of the table, without its name."""
        return [
            "" if self.m is None else str(self.m),
            f"{self.tile[0]}x{self.tile[1]}",
            f"{self.schedule.bundles:.0f}",
            f"{self.hbm_cycles:.0f}",
            f"{self.ratio:.3f}",
            f"{self.with_waits:.3f}",
            "" if self.dense_cycles is None else f"{self.cycles / self.dense_cycles:.2f}",
            *(f"{self.schedule.slots[slot]:.0f}" for slot in schedule.SLOTS),
        ]


def resident(number_format: Format, k: int, n: int, target: str = "v5e") -> ResidentTensor:
    """What products that sum over k read of a weight [n, k] in a TPU's layout, without data."""
    with taken_for(target):
        weight = to_resident(abstract_weight(number_format, (n, k)), "tpu")
    assert weight.backend == "tpu", number_format
    return as_read(weight)


def product_of(
    weight: ResidentTensor, m: int, target: str, plan: TpuPlan | None = None
) -> Callable[..., Any]:
    """The function (x [m, k], leaves of weight) -> x @ weight.T of a target's program."""
    product = Product(
        transpose_w=weight.transposed,
        x_dtype=np.dtype(jnp.bfloat16),
        out_dtype=np.dtype(jnp.float32),
    )
    plan = kernels_of(weight).plan(weight, m, TPUS[target]) if plan is None else plan
    return lambda x, w: one_product(x, w, product, plan)


def measured(
    dump: Path, target: str, names: Sequence[str], ms: Sequence[int], shape: tuple[int, int]
) -> Iterator[tuple[str, Figures]]:
    """Products of x [m, K] with weights of variants, and decodes, by names of budgets.

    Args:
      ms: none: the rows that have budgets.
    """
    for m in ms or sorted({m for name in names for m in VARIANTS[name].rows}):
        base = measure_dense(dump, target, m, shape)
        yield name_of(DENSE, m), base
        for name in (name for name in names if ms or m in VARIANTS[name].rows):
            number_format = VARIANTS[name].number_format
            yield name_of(name, m), measure(dump, target, number_format, m, shape, base.cycles)
    for name in names:
        yield name + DECODE, measure_decode(dump, target, VARIANTS[name].number_format, shape)


def measure(
    dump: Path,
    target: str,
    number_format: Format,
    m: int,
    shape: tuple[int, int] = SHAPE,
    dense_cycles: float | None = None,
) -> Figures:
    """Compiles the fused product of x [m, K] with a weight of a format, and reads its schedule.

    XLA would copy a small weight to the chip before the kernel: it is one of a stack's, as models
    have them, which is too large.
    """
    weight = resident(number_format, *shape, target)
    plan = replace(kernels_of(weight).plan(weight, m, TPUS[target]), fused=True)
    x = jax.ShapeDtypeStruct((m, shape[0]), jnp.bfloat16)
    product = product_of(weight, m, target, plan)
    if weight.nbytes > ON_CHIP:
        _compile(dump, target, product, x, weight)
    else:
        many = 1 + ON_CHIP // weight.nbytes
        layers = jax.tree.map(lambda a: jax.ShapeDtypeStruct((many, *a.shape), a.dtype), weight)
        at = jax.ShapeDtypeStruct((), jnp.int32)
        _compile(dump, target, lambda x, w, at: product(x, w.layer(at)), x, layers, at)
    inline = dict(weight.options).get("inline")
    rest = 0 if inline is None else max(0, chunks_of(plan.tile_k * plan.tile_n) - inline)
    return Figures(
        m=m,
        tile=(plan.tile_k, plan.tile_n),
        schedule=schedule.read(dump, kernel_name("matmul", weight), steps=plan.grid[1], trips=rest),
        hbm_cycles=TPUS[target].hbm_cycles(weight.nbytes / (plan.grid[0] * plan.grid[1])),
        dense_cycles=dense_cycles,
    )


def measure_decode(
    dump: Path, target: str, number_format: Format, shape: tuple[int, int] = SHAPE
) -> Figures:
    """The same of its decode to dense BF16."""
    weight, (k, n) = resident(number_format, *shape, target), shape
    kernels = kernels_of(weight)
    assert kernels.decode_tile is not None
    tile_k, tile_n = kernels.decode_tile(weight)
    _compile(dump, target, lambda w: kernels.decode(w, jnp.dtype(jnp.bfloat16)), weight)
    rest = chunks_of(tile_k * tile_n) if "counts" in weight.arrays else 0
    step = weight.nbytes * tile_k * tile_n / (k * n) + 2 * tile_k * tile_n
    return Figures(
        m=None,
        tile=(tile_k, tile_n),
        schedule=schedule.read(dump, kernel_name("decode", weight), steps=k // tile_k, trips=rest),
        hbm_cycles=TPUS[target].hbm_cycles(step),
    )


def measure_dense(dump: Path, target: str, m: int, shape: tuple[int, int] = SHAPE) -> Figures:
    """The same as `measure` of the dense product, by the better of two ways to read weights."""
    (k, n), (tile_k, tile_n) = shape, dense.TILE
    x = jax.ShapeDtypeStruct((ceil_to(m, 16), k), jnp.bfloat16)

    def figures(w: jax.ShapeDtypeStruct) -> Figures:
        _compile(dump, target, dense.multiply, x, w)
        return Figures(
            m=m,
            tile=dense.TILE,
            schedule=schedule.read(dump, dense.NAME, steps=k // tile_k),
            hbm_cycles=TPUS[target].hbm_cycles(2 * tile_k * tile_n),
        )

    ways = ((k, n), jnp.bfloat16), ((k // 2, n), jnp.uint32)
    best = min(
        (figures(jax.ShapeDtypeStruct(*way)) for way in ways), key=lambda one: one.with_waits
    )
    return replace(best, dense_cycles=best.cycles)


def kernel_name(what: str, weight: ResidentTensor) -> str:
    """What the compiler knows a kernel as."""
    return f"{what}_{weight.layout.removeprefix('tpu_')}"


def _compile(dump: Path, target: str, function: Any, *arguments: Any) -> None:
    compiling.empty(dump)
    compiling.compile_for(target, function, *arguments)
