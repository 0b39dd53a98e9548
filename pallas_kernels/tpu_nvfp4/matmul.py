"""x @ w from NVFP4 on TPU, in the two ways that `plan` says.

E2M1 times E4M3 has six significant bits: it is exact in bfloat16. Factors of columns come in at the
end, with the powers of two that codes lack as they are read: E2M1 in the places of E5M2 is 2^-14 of
itself, and E4M3 read as e4m3b11fnuz a sixteenth.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float32

from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import Tpu
from jentropy.pallas_kernels.tiles import LANES, SUBLANES
from jentropy.pallas_kernels.tpu import nibbles
from jentropy.pallas_kernels.tpu.calls import call, spec
from jentropy.pallas_kernels.tpu.columns import WIDE, body
from jentropy.pallas_kernels.tpu.plan import TpuPlan

from .layout import BLOCK, BLOCKS, CHUNK, TILE, swapped_columns
from .plan import BODY, is_few

UNIT = 2.0**14  # of which a code is read as the part


def codes_of(words: Any, word: Any, here: Any) -> list[Array]:
    """A chunk of rows as float8_e5m2, 32 at a time, from a row of words on."""
    packed = words[pl.ds(word, CHUNK // 8), here]
    return [
        pltpu.bitcast(half, jnp.float8_e5m2)
        for at in range(0, CHUNK // 8, SUBLANES)
        for half in nibbles.bytes_of(packed[at : at + SUBLANES])
    ]


def scaled(words: Any, row: int, here: Any, scales: Array) -> BFloat16[Array, "256 columns"]:
    """A chunk of rows times its scales, in the dtype of these at first."""
    parts = []
    for codes in codes_of(words, row // 8, here):
        numbers = codes.astype(scales.dtype)
        parts += [numbers[:BLOCKS] * scales, numbers[BLOCKS:] * scales]
    return jnp.concatenate(parts, axis=0).astype(jnp.bfloat16)


def kernel(
    x: Any, words: Any, scale: Any, out: Any, *, target: Tpu, few: int, columns: int, steps: int
) -> None:
    """One tile: x [M, KT] @ w [KT, NT] to out, added to what is there after the first along K.

    Args:
      few: rows of x, if they are spread.
      columns: of a loop's body.
      steps: along K.
    """
    rows, wide = x.shape[1], out.shape[1]
    fp8 = jnp.float8_e4m3fn if target.native_e4m3fn else jnp.float8_e4m3b11fnuz
    dtype = jnp.bfloat16 if target.vector_bf16 and not few else jnp.float32
    if steps > 1:

        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            out[...] = jnp.zeros_like(out)

    def terms(here: Any, at: int, scales: Array) -> list[Array]:
        chunk = x[:, at : at + CHUNK]
        if not few:
            weights = scaled(words, at, here, scales)
            return [jnp.dot(chunk, weights, preferred_element_type=jnp.float32)]
        codes = jnp.concatenate(codes_of(words, at // 8, here), axis=0)
        sums = jnp.dot(chunk, codes, preferred_element_type=jnp.float32)
        return [sums[i : i + BLOCKS] * scales for i in range(0, few * BLOCKS, BLOCKS)]

    def put(first: Any) -> None:
        for c in range(0, columns, WIDE):
            here = pl.ds(pl.multiple_of(first + c, LANES), min(WIDE, columns - c))
            total: list[Array] = []
            for at in range(0, rows, TILE):
                codes = scale[at // BLOCK : (at + TILE) // BLOCK, here]
                scales = pltpu.bitcast(codes, fp8).astype(dtype)
                for i in range(TILE // CHUNK):
                    own = scales[i * BLOCKS : (i + 1) * BLOCKS]
                    made = terms(here, at + i * CHUNK, own)
                    total = [a + b for a, b in zip(total, made, strict=True)] if total else made
            if few:
                total = [jnp.sum(one, axis=0, keepdims=True) for one in total]
            sums = jnp.concatenate(total, axis=0)
            out[:, here] = sums if steps == 1 else out[:, here] + sums

    if columns == wide:
        put(jnp.int32(0))
    else:

        @pl.loop(np.int32(0), np.int32(wide // columns))
        def _(i: Array) -> None:
            put(i * columns)


def multiply(
    x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: TpuPlan, product: Product
) -> Float32[Array, "M N"]:
    """Padded x times the padded packed matrix."""
    chex.assert_shape(x, (plan.m, plan.k))
    few = plan.m if is_few(plan) else 0
    x = swapped_columns(x)
    left = spread(x) if few else x
    y = call(
        partial(
            kernel,
            target=plan.target,
            few=few,
            columns=body(plan.tile_k, plan.tile_n, BODY),
            steps=plan.grid[1],
        ),
        weight,
        *(left, weight.arrays["words"], weight.arrays["scale"]),
        name="matmul_nvfp4",
        grid=plan.grid,
        in_specs=[
            pl.BlockSpec((left.shape[0], plan.tile_k), lambda j, k, *_: (0, k)),
            spec(weight, (plan.tile_k // 8, plan.tile_n), lambda j, k: (k, j)),
            spec(weight, (plan.tile_k // BLOCK, plan.tile_n), lambda j, k: (k, j)),
        ],
        out_spec=pl.BlockSpec((plan.m, plan.tile_n), lambda j, k, *_: (0, j)),
        out=jax.ShapeDtypeStruct((plan.m, plan.n), jnp.float32),
        vmem_bytes=plan.vmem_limit_bytes,
        interpret=product.interpret,
    )
    y *= UNIT if plan.target.native_e4m3fn else 16 * UNIT
    factor = weight.array("factor")
    return y / factor if weight.option("divides") else y * factor


def spread(x: BFloat16[Array, "M K"]) -> BFloat16[Array, "rows K"]:
    """Rows of x, in the order of words, once for each block: zero outside of it."""
    block = lax.broadcasted_iota(jnp.int32, (1, BLOCKS, x.shape[1]), 2) % BLOCKS
    own = block == lax.broadcasted_iota(jnp.int32, (1, BLOCKS, x.shape[1]), 1)
    return jnp.where(own, x[:, None], jnp.zeros((), x.dtype)).reshape(-1, x.shape[1])
