"""What products for Hopper are made of, from the machine code, and what it comes to.

integer    operations on the integer units in the loop over steps, per pair of weights
slots      all instructions there, per pair
loop       cycles of a step for those in which memory moves its weights: see `pace`
us         microseconds that a product is predicted to take, the launch included
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy.formats import Format
from jentropy.pallas_kernels.backends import has_kernels
from jentropy.pallas_kernels.conversion import to_resident
from jentropy.pallas_kernels.fused import Product, kernels_of
from jentropy.pallas_kernels.hopper import fragments
from jentropy.pallas_kernels.hopper.plan import HopperPlan
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import GPUS
from jentropy.pallas_kernels.variants import VARIANTS, abstract_weight

from . import compiling, pace, sass
from .budgets import HOPPER_ROWS as DEFAULT_ROWS
from .budgets import ROWS

__all__ = ["COLUMNS", "DEFAULT_ROWS", "SHAPE", "Figures", "measure", "measured"]

TARGET = "h200"
SHAPE = (4096, 28672)  # K and N: gate and up of Llama-3-8B
COLUMNS = {"format": 20, "tiles": 9, "parts": 7}
COLUMNS |= {"registers": 9, "spills": 9, "integer": 9, "slots": 9, "loop": 9, "us": 9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is known of a product.

    Attributes:
      m: rows of x.
      plan: how it runs.
      kernel: its code.
      loop: where the loop over steps stands in it.
    """

    m: int
    plan: HopperPlan
    kernel: sass.Kernel
    loop: tuple[int, int]

    @property
    def pairs(self) -> int:
        """Of weights that a thread decodes in a round of the loop."""
        return self.plan.config.tile_k * self.plan.config.height // 4

    @property
    def operations(self) -> Counter[str]:
        """Of the loop over steps, for a thread."""
        return sass.operations(self.kernel.code[slice(*self.loop)])

    @property
    def pace(self) -> pace.Pace:
        """Of the loop."""
        return pace.pace_of(self.kernel.code, self.loop)

    @property
    def loop_share(self) -> float:
        """Cycles of a step for those in which memory moves its weights."""
        return self.pace.cycles / pace.memory_cycles(self.plan, GPUS[TARGET])

    def budgeted(self) -> dict[str, float]:
        """What budgets hold."""
        operations = self.operations
        integer = sum(operations[name] for name in sass.INTEGER)
        held = {
            "registers": self.kernel.registers,
            "spill_bytes": self.kernel.spill_bytes,
            "integer_per_pair": round(integer / self.pairs, 3),
            "slots_per_pair": round(operations.total() / self.pairs, 3),
        }
        return held if self.m != ROWS else {**held, "loop_share": round(self.loop_share, 3)}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        config = self.plan.config
        return {
            "plan_m": self.plan.m,
            "tile_k": config.tile_k,
            "stages": config.stages,
            "rounds": config.rounds,
            "height": config.height,
            "parts": self.plan.parts,
            "shared_bytes": self.plan.shared_bytes,
            **self.budgeted(),
            "loop_share": round(self.loop_share, 3),
            "cycles": round(self.pace.cycles),
            "predicted_microseconds": {k: round(1e6 * t, 2) for k, t in self.times().items()},
            "loop": dict(self.operations.most_common()),
        }

    def times(self) -> dict[str, float]:
        """Seconds that the product is predicted to take, by what takes them."""
        return pace.seconds(self.plan, self.pace, GPUS[TARGET])

    def cells(self) -> list[str]:
        """A row of the table, without its name."""
        registers, spills, integer, slots, *_ = self.budgeted().values()
        return [
            f"{self.plan.tile_n}x{self.plan.config.tile_k}x{self.plan.config.stages}",
            str(self.plan.parts),
            *(str(registers), str(spills)),
            *(f"{integer:.2f}", f"{slots:.2f}", f"{self.loop_share:.2f}"),
            f"{1e6 * sum(self.times().values()):.1f}",
        ]


def resident(number_format: Format, k: int, n: int) -> ResidentTensor:
    """A weight [n, k] in the GPU's layout, without data."""
    weight = to_resident(abstract_weight(number_format, (n, k)), "gpu")
    assert weight.backend == "gpu", number_format
    return weight


def plan_of(weight: ResidentTensor, m: int) -> HopperPlan:
    """How the product of x [m, k] with a weight runs."""
    return kernels_of(weight).plan(weight, m, GPUS[TARGET])


def measured(
    dump: Path, target: str, names: Sequence[str], ms: Sequence[int], shape: tuple[int, int]
) -> Iterator[tuple[str, Figures]]:
    """Products of x [m, K] with weights of the variants that have kernels, by names of budgets."""
    known: dict[Any, Figures] = {}  # no kernel is compiled twice in a process
    for name, m in itertools.product(names, ms):
        number_format = VARIANTS[name].number_format
        if has_kernels("gpu", number_format):
            weight = resident(number_format, *shape)
            plan = plan_of(weight, m)
            kernel = kernel_of(plan, weight)
            if kernel not in known:
                known[kernel] = measure(dump, target, m, plan, weight)
            yield f"{name} M={m}", replace(known[kernel], m=m, plan=plan)


def kernel_of(plan: HopperPlan, weight: ResidentTensor) -> tuple[Any, ...]:
    """What plans that run the same kernel, once or in passes, have in common."""
    alone = replace(plan, passes=1, fused=True, few=True)
    return alone, weight.layout, weight.number_format


def measure(dump: Path, target: str, m: int, plan: HopperPlan, weight: ResidentTensor) -> Figures:
    """Compiles a pass of a fused product as planned, and reads its code."""
    x = jax.ShapeDtypeStruct((plan.m, plan.k), jnp.bfloat16)
    (kernel,) = code_of(dump, target, one_pass(weight, plan), x, weight)
    loop = kernel.main_loop(plan.config.height * plan.config.tile_k // fragments.COLUMNS)
    return Figures(m=m, plan=plan, kernel=kernel, loop=loop)


def one_pass(weight: ResidentTensor, plan: HopperPlan) -> Any:
    """The function (x, leaves of weight) -> y of one pass over it."""
    dtype = np.dtype(jnp.bfloat16)
    product = Product(transpose_w=True, x_dtype=dtype, out_dtype=dtype)
    return partial(kernels_of(weight).multiply, plan=plan, product=product)


def code_of(dump: Path, target: str, function: Any, *arguments: Any) -> list[sass.Kernel]:
    """The Pallas kernels in a function of abstract arguments, compiled."""
    compiling.empty(dump)
    compiling.compile_for(target, function, *arguments)
    return sass.read(dump)
