"""Every distinct plan that products with the layers of some models have in every format.

A plan is what decides the kernel: the layout with its options and dtypes, rows of x, and tiles. How
many steps a grid has does not, so that many shapes share one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jentropy.pallas_kernels.resident import ResidentTensor

from .measuring import plan_of
from .weights import FORMATS, abstract_weight

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
# Kernels of these formats for many rows of x take the compiler more than half of the time that all
# would: they are compiled for the layers of one model only.
SLOW = ("INT4 g32", "INT4 g128", "INT4 g32 zeros", "INT4 g128 zeros")
MODEL_OF_SLOW, FEW_ROWS = "Llama-3-8B", 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A product whose plan stands for others."""

    layer: str
    number_format: str
    m: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.layer} {self.number_format} M={self.m}"

    def weight(self) -> ResidentTensor:
        """Its weight, without data."""
        return abstract_weight(FORMATS[self.number_format], self.k, self.n)


def distinct(target: str, models: Iterable[str] = tuple(LAYERS)) -> list[Case]:
    """The first case of every plan."""
    found: dict[object, Case] = {}
    for model in models:
        for name in FORMATS:
            for layer, (k, n) in LAYERS[model].items():
                weight = abstract_weight(FORMATS[name], k, n)
                for m in ROWS:
                    if name in SLOW and m > FEW_ROWS and model != MODEL_OF_SLOW:
                        continue
                    plan = plan_of(weight, m, target)
                    tiles = plan.fused, plan.m, plan.tile_k, plan.tile_n
                    case = Case(layer=f"{model} {layer}", number_format=name, m=m, k=k, n=n)
                    found.setdefault((*identity(weight), tiles), case)
    return list(found.values())


def layouts(cases: Iterable[Case]) -> list[Case]:
    """The first case of every layout, whatever x has."""
    found: dict[object, Case] = {}
    for case in cases:
        found.setdefault(identity(case.weight()), case)
    return list(found.values())


def identity(weight: ResidentTensor) -> tuple[object, ...]:
    """What kernels are specialised for."""
    dtypes = tuple((name, array.dtype.name) for name, array in weight.arrays.items())
    return weight.layout, weight.options, weight.number_format.element.name, dtypes
