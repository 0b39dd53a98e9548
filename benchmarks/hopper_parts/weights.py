"""Shapes, and weights with what each case needs of them: codes, escapes, random words."""

from __future__ import annotations

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jentropy import formats
from jentropy.bench import matmul
from jentropy.pallas_kernels import ResidentTensor, backends, to_resident
from jentropy.pallas_kernels.variants import VARIANTS, abstract_weight, weight_of

DRY = "HOPPER_DRY" in os.environ
SMALL = 128, 256  # N and K of every layer in a dry run
SEVEN = (  # in order of what they tell
    "Llama-3-8B gate+up",
    "Llama-3-8B o",
    "Llama-3-8B down",
    "Llama-3-8B q+k+v",
    "Llama-3-70B gate+up",
    "Llama-3-70B o",
    "Llama-3-70B down",
)
LAYERS = {name: matmul.SHAPES[name] for name in SEVEN}  # N and K
GOALS = ("BF16", "FP8 row", "MXFP4", "NVFP4", "INT4 g128")  # formats
FIRST = ("FP8 128x128", "MXFP8", "INT8 row", "INT4 g128 zeros", "INT4 g32", "INT4 row")
OTHERS = (
    *FIRST,
    *(
        name
        for name, variant in VARIANTS.items()
        if name not in (*GOALS, *FIRST) and backends.has_kernels("gpu", variant.number_format)
    ),
)
# N, K, experts and how many of them a token has, and the format beside BF16: gpt-oss-120b and
# DeepSeek-V3.
EXPERTS = (
    *((5760, 2880, 128, 4, "MXFP4"), (2880, 2880, 128, 4, "MXFP4")),
    *((2048, 7168, 256, 8, "FP8 128x128"), (7168, 2048, 256, 8, "FP8 128x128")),
)
EXPERT_TOKENS = (16, 1, 64)
if DRY:
    LAYERS = {SEVEN[0]: SMALL}
    EXPERTS, EXPERT_TOKENS = ((*SMALL, 3, 2, "MXFP4"),), (4,)


def random_weight(n: int, k: int, escapes: float = 1.3) -> ResidentTensor:
    """BF16 packed, of random words: any are valid. Lists hold so many entries on average."""
    n, k = (-(-size // 128) * 128 for size in (n, k))
    rng = np.random.default_rng(0)
    lists = rng.integers(0, 1 << 29, (n // 64, k // 128, 16), np.uint32)
    lists &= np.uint32(0xFFFF3F80)  # codes of moderate size
    lists[..., 0] = np.minimum(rng.poisson(escapes, lists.shape[:2]), 15)
    return ResidentTensor(
        arrays={
            "words": jax.random.bits(jax.random.key(0), (n // 64, k // 64, 12, 128), jnp.uint32),
            "scale": jnp.full((n,), 2.0**106, jnp.bfloat16),
            "escapes": jnp.asarray(lists),
        },
        layout="gpu_window12",
        number_format=formats.FORMATS["BF16"],
        logical=(n, k),
    )


def random_of(name: str, n: int, k: int) -> ResidentTensor:
    """Of a format, of random words: any are valid, but for NaN of floats of eight bits."""
    if name == "BF16":
        return random_weight(n, k)
    weight = to_resident(abstract_weight(VARIANTS[name].number_format, (n, k)), "gpu")

    def made(array: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        if array == "words":
            return jax.random.bits(jax.random.key(0), shape.shape, jnp.uint32)
        if shape.dtype == jnp.uint32:
            return jnp.full(shape.shape, 0x74747474, jnp.uint32)
        return jnp.full(shape.shape, 8 if shape.dtype == jnp.uint8 else 2.0**-6, shape.dtype)

    return replace(weight, arrays={key: made(key, array) for key, array in weight.arrays.items()})


def quantized(name: str, n: int, k: int) -> ResidentTensor:
    """Of a format, from numbers."""
    values = jnp.asarray(gaussian(n, k, 0), jnp.float32)
    weight = to_resident(weight_of(VARIANTS[name].number_format, values), "gpu")
    assert getattr(weight, "layout", None) == "gpu_scaled", weight
    return weight


def packed(dense: np.ndarray) -> ResidentTensor:
    """BF16, from numbers."""
    weight = to_resident(jnp.asarray(dense), "gpu")
    assert getattr(weight, "layout", None) == "gpu_window12", weight
    return weight


def stacked(weight: ResidentTensor, count: int) -> ResidentTensor:
    """Many weights that differ."""
    arrays = {name: jnp.stack([a] * count) for name, a in weight.arrays.items()}
    arrays["words"] += jnp.arange(count, dtype=jnp.uint32)[:, None, None, None, None]
    return replace(weight, arrays=arrays)


def gaussian(n: int, k: int, escapes: int) -> np.ndarray:
    """Numbers [n, k], bfloat16, some of them far from the others."""
    rng = np.random.default_rng(n + k)
    dense = (rng.standard_normal((n, k)) * 0.02).astype(ml_dtypes.bfloat16)
    row, column = rng.integers(0, n, escapes), rng.integers(0, k, escapes)
    far = rng.standard_normal(escapes) * 2.0 ** rng.integers(-60, 40, escapes)
    dense[row, column] = far.astype(ml_dtypes.bfloat16)
    dense[min(3, n - 1)] = 0
    return dense
