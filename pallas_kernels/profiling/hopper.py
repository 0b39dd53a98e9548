"""What products for Hopper are made of, from the machine code.

integer    operations on the integer units in the loop over steps, per pair of weights
slots      all instructions there, per pair
share      of the instructions that the GPU starts while memory moves those weights
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy.pallas_kernels.conversion import to_resident
from jentropy.pallas_kernels.fused import Product, kernels_of
from jentropy.pallas_kernels.hopper import fragments
from jentropy.pallas_kernels.hopper.plan import HopperPlan
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import GPUS

from . import compiling, sass
from .budgets import HOPPER_ROWS as DEFAULT_ROWS

__all__ = ["COLUMNS", "DEFAULT_ROWS", "SHAPE", "Figures", "measure", "measured"]

TARGET = "h200"
SHAPE = (4096, 28672)  # K and N: gate and up of Llama-3-8B
COLUMNS = {"format": 14, "tiles": 7, "parts": 7}
COLUMNS |= {"registers": 9, "spills": 9, "integer": 9, "slots": 9, "share": 9}
ISSUE_SLOTS = 128  # warps' instructions times lanes that a multiprocessor starts in a cycle
CLOCK_HZ = 1.98e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is known of a product.

    Attributes:
      m: rows of x.
      plan: how it runs.
      kernel: its code.
      loop: operations of the loop over steps, for a thread.
      pairs: of weights that a thread decodes in a round of it.
    """

    m: int
    plan: HopperPlan
    kernel: sass.Kernel
    loop: Counter[str]
    pairs: int

    @property
    def issue_share(self) -> float:
        """Of the slots that there are while memory moves the weights' bytes."""
        target = GPUS[TARGET]
        pairs = target.bytes_per_second / 3  # three bytes hold two weights
        slots = target.multiprocessors * ISSUE_SLOTS * CLOCK_HZ
        return self.loop.total() / self.pairs * pairs / slots

    def budgeted(self) -> dict[str, float]:
        """What budgets hold."""
        integer = sum(self.loop[name] for name in sass.INTEGER)
        return {
            "registers": self.kernel.registers,
            "spill_bytes": self.kernel.spill_bytes,
            "integer_per_pair": round(integer / self.pairs, 3),
            "slots_per_pair": round(self.loop.total() / self.pairs, 3),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        config = self.plan.config
        return {
            "tile_k": config.tile_k,
            "stages": config.stages,
            "rounds": config.rounds,
            "parts": self.plan.parts,
            "shared_bytes": self.plan.shared_bytes,
            **self.budgeted(),
            "issue_share": round(self.issue_share, 3),
            "loop": dict(self.loop.most_common()),
        }

    def cells(self) -> list[str]:
        """A row of the table, without its name."""
        registers, spills, integer, slots = self.budgeted().values()
        return [
            f"{self.plan.config.tile_k}x{self.plan.config.stages}",
            str(self.plan.parts),
            *(str(registers), str(spills)),
            *(f"{integer:.2f}", f"{slots:.2f}", f"{self.issue_share:.2f}"),
        ]


def resident(n: int, k: int) -> ResidentTensor:
    """What `to_resident` makes of a BF16 weight [n, k] with Gaussian numbers, without data."""
    return to_resident(jax.ShapeDtypeStruct((n, k), jnp.bfloat16), "gpu")


def plan_of(m: int, n: int, k: int) -> HopperPlan:
    """How the product of x [m, k] with a weight [n, k] runs."""
    weight = resident(n, k)
    return kernels_of(weight).plan(weight, m, GPUS[TARGET])


def measured(
    dump: Path, target: str, names: Sequence[str], ms: Sequence[int], shape: tuple[int, int]
) -> Iterator[tuple[str, Figures]]:
    """Products of x [m, K] with BF16 weights, by names of budgets."""
    k, n = shape
    for m in ms:
        yield f"BF16 M={m}", measure(dump, target, m, plan_of(m, n, k))


def measure(dump: Path, target: str, m: int, plan: HopperPlan) -> Figures:
    """Compiles a pass of a fused product as planned, and reads its code."""
    weight = resident(plan.n, plan.k)
    x = jax.ShapeDtypeStruct((plan.m, plan.k), jnp.bfloat16)
    (kernel,) = code_of(dump, target, one_pass(weight, plan), x, weight)
    loop = kernel.main_loop(plan.config.tile_k // fragments.COLUMNS)
    return Figures(m=m, plan=plan, kernel=kernel, loop=loop, pairs=plan.config.tile_k // 4)


def one_pass(weight: ResidentTensor, plan: HopperPlan) -> Any:
    """The function (x, leaves of weight) -> y of one pass over it."""
    kernels, dtype = kernels_of(weight), np.dtype(jnp.bfloat16)
    product = Product(transpose_w=True, x_dtype=dtype, out_dtype=dtype)
    return lambda x, w: kernels.multiply(x, w, plan, product)


def code_of(dump: Path, target: str, function: Any, *arguments: Any) -> list[sass.Kernel]:
    """The Pallas kernels in a function of abstract arguments, compiled."""
    compiling.empty(dump)
    compiling.compile_for(target, function, *arguments)
    return sass.read(dump)
