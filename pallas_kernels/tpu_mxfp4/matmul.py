"""x @ w from MXFP4 on TPU: one product of full depth with float8_e5m2, without partial sums.

A register of deltas, the same in its eight rows, serves a chunk of 128 rows: its bytes are added to
those of codes, and zeros are selected. Powers of columns come in at the end. Every number is exact
as E5M2; so is its product with bfloat16 x in float32.
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
from jaxtyping import Array, BFloat16, Float32, Int32, UInt32

from jentropy.pallas_kernels.bf16 import BIAS
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES, SUBLANES
from jentropy.pallas_kernels.tpu import nibbles
from jentropy.pallas_kernels.tpu.calls import call, spec
from jentropy.pallas_kernels.tpu.columns import WIDE, body
from jentropy.pallas_kernels.tpu.plan import TpuPlan

from . import other_blocks
from .orders import CHUNK, ordered_columns
from .plan import BODY

DEPTH = 256  # rows of a product


def operand(words: UInt32[Array, "8 128"], delta: UInt32[Array, "8 128"], native: int) -> Array:
    """Eight rows of words as 64 rows of numbers, float8_e5m2."""
    if native:
        codes = pltpu.bitcast(words, jnp.float4_e2m1fn).astype(jnp.float8_e5m2)
        both = pltpu.bitcast(codes, jnp.uint32)
        halves = [(both[:SUBLANES],) * 2, (both[SUBLANES:],) * 2]
    else:
        halves = [(codes, codes ^ nibbles.four(2)) for codes in nibbles.bytes_of(words)]
    zero = np.uint8(0)
    made = [
        jnp.where(
            pltpu.bitcast(codes, jnp.uint8) != 0, pltpu.bitcast(placed + delta, jnp.uint8), zero
        )
        for codes, placed in halves
    ]
    return jnp.concatenate([pltpu.bitcast(half, jnp.float8_e5m2) for half in made], axis=0)


def chunk_of(words: Any, delta: Any, row: int, column: Any, tile: Any, native: int) -> Array:
    """128 rows and columns of a tile as numbers, from `row` and `column` on."""
    shared = jnp.broadcast_to(delta[tile, pl.ds(row // CHUNK, 1), :], (SUBLANES, LANES))
    parts = [
        operand(words[at : at + SUBLANES, pl.ds(column, LANES)], shared, native)
        for at in range(row // 8, (row + CHUNK) // 8, SUBLANES)
    ]
    return jnp.concatenate(parts, axis=0)


def kernel(
    x: Any, words: Any, delta: Any, out: Any, *, native: int, columns: int, steps: int
) -> None:
    """One tile: x [M, KT] @ w [KT, NT] to out, added to what is there after the first along K.

    Args:
      columns: of a loop's body.
      steps: along K.
    """
    rows, wide = x.shape[1], out.shape[1]
    if steps > 1:

        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            out[...] = jnp.zeros_like(out)

    def product(first: Any, size: int) -> Array:
        total = None
        tile = lax.div(first, jnp.int32(LANES))
        for at in range(0, rows, DEPTH):
            until = min(at + DEPTH, rows)
            numbers = jnp.concatenate(
                [
                    jnp.concatenate(
                        [
                            chunk_of(words, delta, row, first + c, tile + c // LANES, native)
                            for row in range(at, until, CHUNK)
                        ],
                        axis=0,
                    )
                    for c in range(0, size, LANES)
                ],
                axis=1,
            )
            part = jnp.dot(x[:, at:until], numbers, preferred_element_type=jnp.float32)
            total = part if total is None else total + part
        assert total is not None
        return total

    def put(first: Any) -> None:
        for c in range(0, columns, WIDE):
            size = min(WIDE, columns - c)
            here = pl.ds(pl.multiple_of(first + c, LANES), size)
            total = product(here.start, size)
            out[:, here] = total if steps == 1 else out[:, here] + total

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
    arrays, native = weight.arrays, weight.option("native")
    columns = body(plan.tile_k, plan.tile_n, BODY[plan.target.name])
    y = call(
        partial(kernel, native=native, columns=columns, steps=plan.grid[1]),
        weight,
        *(ordered_columns(x, native), arrays["words"], arrays["delta"]),
        name="matmul_mxfp4",
        grid=plan.grid,
        in_specs=[
            pl.BlockSpec((plan.m, plan.tile_k), lambda j, k, *_: (0, k)),
            spec(weight, (plan.tile_k // 8, plan.tile_n), lambda j, k: (k, j)),
            spec(
                weight,
                (pl.cdiv(plan.tile_n, LANES), plan.tile_k // CHUNK, LANES),
                lambda j, k: (j, k, 0),
            ),
        ],
        out_spec=pl.BlockSpec((plan.m, plan.tile_n), lambda j, k, *_: (0, j)),
        out=jax.ShapeDtypeStruct((plan.m, plan.n), jnp.float32),
        vmem_bytes=plan.vmem_limit_bytes,
        interpret=product.interpret,
    )
    y = times_powers(y, weight.array("base"))
    return y + other_blocks.products(x, weight.array("others")) if "others" in arrays else y


def times_powers(y: Float32[Array, "M N"], powers: Int32[Array, "1 N"]) -> Float32[Array, "M N"]:
    """Columns times powers of two, in two steps: one may be more than float32 has."""
    half = powers >> 1

    def power(of: Array) -> Array:
        return lax.bitcast_convert_type((of + BIAS) << 23, jnp.float32)

    return y * power(half) * power(powers - half)
