"""Plans that products with the layers of some models have, in every variant that has budgets.

A plan is what decides a kernel: the layout with its options and dtypes, rows of x, and tiles. How
many steps a grid has does not, so that many shapes share one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from jentropy.pallas_kernels.backends import has_kernels
from jentropy.pallas_kernels.fused import kernels_of
from jentropy.pallas_kernels.hopper.plan import HopperPlan
from jentropy.pallas_kernels.profiling import hopper, tpu
from jentropy.pallas_kernels.profiling.crossover import SLOW
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import GPUS, TPUS
from jentropy.pallas_kernels.tpu.columns import ColumnsPlan
from jentropy.pallas_kernels.tpu.plan import TpuPlan
from jentropy.pallas_kernels.variants import VARIANTS

ROWS = (1, 8, 16, 64, 256)  # of x

# K and N of the layers, from each model's config.json on Hugging Face.
LAYERS: dict[str, dict[str, tuple[int, int]]] = {
    "Llama-3-8B": {  # meta-llama/Meta-Llama-3-8B: 32 heads and 8 of keys, of 128
        "q, o": (4096, 4096),
        "k, v": (4096, 1024),
        "qkv": (4096, 6144),
        "gate, up": (4096, 14336),
        "gate and up": (4096, 28672),
        "down": (14336, 4096),
        "head": (4096, 128256),
    },
    "Qwen3-32B": {  # Qwen/Qwen3-32B: 64 heads and 8 of keys, of 128
        "q": (5120, 8192),
        "k, v": (5120, 1024),
        "qkv": (5120, 10240),
        "o": (8192, 5120),
        "gate, up": (5120, 25600),
        "gate and up": (5120, 51200),
        "down": (25600, 5120),
        "head": (5120, 151936),
    },
    "gpt-oss-120b": {  # openai/gpt-oss-120b: 64 heads and 8 of keys, of 64
        "q": (2880, 4096),
        "k, v": (2880, 512),
        "qkv": (2880, 5120),
        "o": (4096, 2880),
        "expert gate and up": (2880, 5760),
        "expert down": (2880, 2880),
        "head": (2880, 201088),
    },
    "DeepSeek-V3": {  # deepseek-ai/DeepSeek-V3: 128 heads of 128 + 64, latents of 1536 and 512 + 64
        "q_a": (7168, 1536),
        "q_b": (1536, 24576),
        "kv_a": (7168, 576),
        "kv_b": (512, 32768),
        "o": (16384, 7168),
        "gate, up": (7168, 18432),
        "down": (18432, 7168),
        "expert gate, up": (7168, 2048),
        "expert down": (2048, 7168),
        "head": (7168, 129280),
    },
}
MODEL_OF_SLOW, FEW_ROWS = "Llama-3-8B", 16  # for whose layers only, and above, SLOW are compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A product of a layer, and its plan."""

    layer: str
    variant: str
    m: int
    weight: ResidentTensor  # without data
    plan: TpuPlan | HopperPlan

    def __str__(self) -> str:
        return f"{self.layer} {self.variant} M={self.m}"

    def layout(self) -> tuple[object, ...]:
        """What the decode is specialised for."""
        weight = self.weight
        dtypes = tuple((name, array.dtype.name) for name, array in weight.arrays.items())
        return weight.layout, weight.options, weight.number_format.element.name, dtypes

    def kernel(self) -> tuple[object, ...]:
        """What the product is specialised for."""
        plan = self.plan
        if isinstance(plan, HopperPlan):
            config = plan.config
            tiles = config.height, config.tile_k, config.stages
            return *self.layout(), plan.m, *tiles, plan.parts > 1
        return *self.layout(), plan.fused, plan.m, plan.tile_k, plan.tile_n

    def traits(self) -> set[object]:
        """What plans differ in, one by one; not tiles that are as large as the matrix lets them."""
        kind = self.kernel()[-3:]
        if isinstance(self.plan, HopperPlan):
            kind = self.kernel()[-4:]
        if isinstance(self.plan, ColumnsPlan):
            kind = self.plan.m, self.plan.grid[1] > 1
        return {self.variant, *((self.weight.layout, i, value) for i, value in enumerate(kind))}


def cases(target: str, models: Iterable[str] = tuple(LAYERS)) -> Iterator[Case]:
    """Every product of every layer of some models."""
    is_tpu = target in TPUS
    for model, name in itertools.product(models, VARIANTS):
        variant = VARIANTS[name]
        if not variant.ceilings or not has_kernels(
            "tpu" if is_tpu else "gpu", variant.number_format
        ):
            continue
        for layer, (k, n) in LAYERS[model].items():
            weight = (
                tpu.resident(variant.number_format, k, n, target)
                if is_tpu
                else hopper.resident(variant.number_format, k, n)
            )
            for m in ROWS:
                if is_tpu and name in SLOW and m > FEW_ROWS and model != MODEL_OF_SLOW:
                    continue
                plan = kernels_of(weight).plan(weight, m, (TPUS | GPUS)[target])
                yield Case(layer=f"{model} {layer}", variant=name, m=m, weight=weight, plan=plan)


def distinct(cases: Iterable[Case], by: Callable[[Case], object] = Case.kernel) -> list[Case]:
    """The first case of every kernel, or of what else is told."""
    first: dict[object, Case] = {}
    for case in cases:
        first.setdefault(by(case), case)
    return list(first.values())


def sampled(cases: Iterable[Case], known: Iterable[Case] = ()) -> list[Case]:
    """Cases that have every variant, number of rows and tile, each in one of them at least.

    Args:
      known: others, of which nothing more is needed.
    """
    seen = {trait for case in known for trait in case.traits()}
    chosen = []
    for case in cases:
        if not case.traits() <= seen:
            seen |= case.traits()
            chosen.append(case)
    return chosen
