"""The product with a dense BF16 weight, as a kernel of the same make: the measure of the others.

Weights are read as bfloat16, or as words of two rows, which some TPUs take in half the bundles.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float32, UInt32

NAME = "matmul_dense"
TILE = (2048, 1024)  # large: what a step costs beside its arithmetic is the same in a small one


def kernel(x: Any, w: Any, out: Any, acc: Any) -> None:
    """One tile: adds x [M, KT] @ w [KT, NT]; the last one along K writes out [M, NT].

    Args:
      w: bfloat16[KT, NT], or uint32[KT / 2, NT].
    """

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        acc[...] = jnp.zeros_like(acc)

    weights = pltpu.bitcast(w[...], jnp.bfloat16)
    acc[...] += jnp.dot(x[...], weights, preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _() -> None:
        out[...] = acc[...]


def multiply(
    x: BFloat16[Array, "M K"], w: BFloat16[Array, "K N"] | UInt32[Array, "words N"]
) -> Float32[Array, "M N"]:
    """x @ w; M is a multiple of 16, K and N of tiles."""
    (m, k), (tile_k, tile_n) = x.shape, TILE
    rows = tile_k * w.shape[0] // k
    return pl.pallas_call(
        kernel,
        grid=(w.shape[1] // tile_n, k // tile_k),
        in_specs=[
            pl.BlockSpec((m, tile_k), lambda j, k: (0, k)),
            pl.BlockSpec((rows, tile_n), lambda j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((m, tile_n), lambda j, k: (0, j)),
        scratch_shapes=[pltpu.VMEM((m, tile_n), jnp.float32)],
        out_shape=jax.ShapeDtypeStruct((m, w.shape[1]), jnp.float32),
        name=NAME,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=32 << 20
        ),
    )(x, w)
