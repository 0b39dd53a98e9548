"""x @ w from MXFP4 on TPU: one product of full depth with float8_e5m2, without partial sums.

A register of deltas, the same in its eight rows, serves a chunk of 128 rows: its bytes are added to
those of codes, and zeros are selected. Powers of columns come in at the end. Every number is exact
as E5M2; so is its product with bfloat16 x in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float, Float32, Int, Int32, UInt32

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.bf16 import BIAS
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES, SUBLANES
from jentropy.pallas_kernels.tpu import grouped as of_groups
from jentropy.pallas_kernels.tpu import nibbles, products
from jentropy.pallas_kernels.tpu.columns import WIDE, body_columns, over_columns
from jentropy.pallas_kernels.tpu.plan import TpuPlan
from jentropy.pallas_kernels.tpu.products import Body, Operand, Tile

from . import other_blocks
from .orders import CHUNK, ordered_columns
from .plan import BODY, grouped_plan

DEPTH = 256  # rows of a product


def operand(words: UInt32[Array, "8 wide"], delta: UInt32[Array, "8 wide"], native: int) -> Array:
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


def add(
    tile: Tile,
    x: Any,
    sides: Sequence[Any],
    operands: Mapping[str, Any],
    accumulators: Sequence[Any],
    *,
    native: int,
    columns: int,
) -> None:
    """Adds x [M, KT] @ w [KT, NT].

    Args:
      columns: of a loop's body.
    """
    words, delta, (out,) = operands["words"], operands["delta"], accumulators
    rows, wide = x.shape[1], out.shape[1]

    def numbers(first: Any, size: int, at: int) -> Array:
        tile = lax.div(first, jnp.int32(LANES))
        chunks = range(at, min(at + DEPTH, rows), CHUNK)
        made = [
            [chunk_of(words, delta, row, first + c, tile + c // LANES, native) for row in chunks]
            for c in range(0, size, LANES)
        ]
        return jnp.concatenate([jnp.concatenate(each, axis=0) for each in made], axis=1)

    def put(first: Any) -> None:
        for c in range(0, columns, WIDE):
            start, size = pl.multiple_of(first + c, LANES), min(WIDE, columns - c)
            here = pl.ds(start, size)
            total = out[:, here]
            for at in range(0, rows, DEPTH):
                total += jnp.dot(
                    x[:, at : at + DEPTH],
                    numbers(start, size, at),
                    preferred_element_type=jnp.float32,
                )
            out[:, here] = total

    over_columns(wide, columns, put)


def finish(
    sides: Sequence[Any], operands: Mapping[str, Any], accumulators: Sequence[Any]
) -> Float32[Array, "M N"]:
    """Sums times the powers of their columns."""
    return times_powers(accumulators[0][...], operands["base"][...])


def body_of(weight: ResidentTensor, plan: TpuPlan) -> Body:
    """How tiles are multiplied, of one matrix or of those of a stack."""
    arrays, native = weight.arrays, weight.option("native")
    words = plan.tile_k // 8, plan.tile_n
    delta = -(-plan.tile_n // LANES), plan.tile_k // CHUNK, LANES
    columns = body_columns(plan.tile_k, plan.tile_n, BODY[plan.target.name])
    return Body(
        name="mxfp4",
        operands={
            "words": Operand(array=arrays["words"], block=words, row=0, column=1),
            "delta": Operand(array=arrays["delta"], block=delta, row=1, column=0),
            "base": Operand(array=arrays["base"], block=(1, plan.tile_n), column=1),
        },
        ordered=partial(ordered_columns, native=native),
        add=partial(add, native=native, columns=columns),
        finish=finish,
    )


def multiply(
    x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: TpuPlan, product: Product
) -> Float32[Array, "M N"]:
    """Padded x times the padded packed matrix."""
    y = products.multiply(x, weight, plan, body_of(weight, plan), product.interpret)
    if "others" not in weight.arrays:
        return y
    return y + other_blocks.products(x, weight.array("others"))


def grouped(
    x: Float[Array, "M K"], weight: ResidentTensor, sizes: Int[Array, " groups"], product: Product
) -> Float[Array, "M N"] | None:
    """x times the matrix of each row's group; 0 in rows of none. None where words lack blocks."""
    readable = targets.current_tpu().native_e2m1 or not weight.option("native")
    if "others" in weight.arrays or not readable:
        return None
    return of_groups.multiply(x, weight, sizes, product, plan_of=grouped_plan, body_of=body_of)


def times_powers(y: Float32[Array, "M N"], powers: Int32[Array, "1 N"]) -> Float32[Array, "M N"]:
    """Columns times powers of two, in two steps: one may be more than float32 has."""
    half = powers >> 1

    def power(of: Array) -> Array:
        return lax.bitcast_convert_type((of + BIAS) << 23, jnp.float32)

    return y * power(half) * power(powers - half)
