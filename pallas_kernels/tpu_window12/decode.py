"""A tile of window12 to dense BF16 on TPU, every code of it.

Slots, two to a word, are BF16 numbers: zeros with a sign, or normal ones a power of two short of
the weights. They are multiplied by it, which rounds nothing. Escapes may be what arithmetic
changes: words with their codes, both halves, are stored over the products one by one. The scalar
unit takes five operations for each, which is what their lists are laid out for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32, Shaped

from jentropy.codecs import window12
from jentropy.pallas_kernels.bf16 import BIAS
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES, SUBLANES
from jentropy.pallas_kernels.tpu.calls import call, spec

from .layout import ESCAPES, PLACE, REGISTER, TILE_COLUMNS
from .plan import decode_tile

QUARTERS = 4
HALF = 16
STEP = 16  # word rows that are unpacked together: what fits in registers
MOST_POWER = 127  # of two that BF16 has
REGISTERS = TILE_COLUMNS // LANES  # beside each other in a tile


def kernel(
    counts: Any, words: Any, top: Any, escapes: Any, out: Any, pairs: Any, *, factors: int
) -> None:
    """One tile: words [3, KT / 8, NT] to out [KT, NT], by way of pairs [KT / 2 * 8, 128].

    `pairs` has the registers of a tile of words [KT / 2, 1024] under each other.
    """
    tile_rows, columns = out.shape
    quarter, across = tile_rows // 2 // QUARTERS, columns // LANES
    power = top[...].astype(jnp.int32) - window12.WINDOW
    scales = [_powers_of_two(power + i >> factors - 1) for i in range(factors)]

    @pl.loop(np.int32(0), np.int32(quarter), step=np.int32(STEP))  # also where integers are int64
    def _(row: Array) -> None:
        packed = [
            words[i, pl.ds(pl.multiple_of(row, STEP), STEP), :] for i in range(window12.WORDS)
        ]
        for q, slots in enumerate(window12.unpack_words(*packed)):
            numbers = pltpu.bitcast(slots, jnp.bfloat16)
            for scale in scales:
                numbers *= scale
            made = pltpu.bitcast(numbers, jnp.uint32)
            for r in range(0, STEP, SUBLANES):
                for t in range(across):
                    at = (q * quarter + row + r) * REGISTERS + t * SUBLANES
                    register = made[r : r + SUBLANES, t * LANES : (t + 1) * LANES]
                    pairs[pl.ds(pl.multiple_of(at, SUBLANES), SUBLANES), :] = register

    sublane, lane = (lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), axis) for axis in (0, 1))
    place_of = sublane << 7 | lane
    rows = escapes.shape[2] - 1
    # Two references, so that one sum is both addresses.
    wheres, codes = (escapes.at[0, 0, pl.ds(first, rows)] for first in (0, 1))

    @pl.loop(0, (counts[pl.program_id(0), pl.program_id(1)] + (ESCAPES - 1)) >> 7)
    def _(c: Array) -> None:
        for i in range(ESCAPES):
            where, code = wheres[2 * c, i], codes[2 * c, i]
            here = jnp.full(place_of.shape, where) & PLACE == place_of
            code = jnp.full(place_of.shape, lax.bitcast_convert_type(code, jnp.uint32))
            pltpu.store(pairs.at[pl.ds(where >> REGISTER, SUBLANES), :], code, mask=here)

    registers = pairs[...].reshape(-1, REGISTERS, SUBLANES, LANES)
    matrix = jnp.concatenate([registers[:, t].reshape(-1, LANES) for t in range(across)], axis=1)
    out[...] = pltpu.bitcast(matrix, jnp.bfloat16).astype(out.dtype)


def _powers_of_two(power: Int32[Array, "1 columns"]) -> Array:
    """BF16[2 * STEP, NT] of powers."""
    code = (power + BIAS).astype(jnp.uint32) << 7
    return pltpu.bitcast(jnp.broadcast_to(code | code << HALF, (STEP, code.shape[1])), jnp.bfloat16)


def decode(
    weight: ResidentTensor, dtype: Any, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded to whole tiles."""
    words, lists = weight.arrays["words"], weight.arrays["escapes"]
    rows, columns = 8 * words.shape[-2], words.shape[-1]
    tile_rows, tile_columns = decode_tile(weight)
    # The option is half of the largest power, rounded down.
    factors = 1 if 2 * weight.option("shift") + 1 <= MOST_POWER else 2
    by_tile = (1, 1, *lists.shape[-2:])
    return call(
        partial(kernel, factors=factors),
        weight,
        *(words, weight.array("top").astype(jnp.int32), lists),
        name="decode_window12",
        grid=lists.shape[-4:-2],
        in_specs=[
            spec(weight, (3, tile_rows // 8, tile_columns), lambda j, k: (0, k, j)),
            pl.BlockSpec((1, tile_columns), lambda j, k, *_: (0, j)),
            spec(weight, by_tile, lambda j, k: (j, k, 0, 0), memory_space=pltpu.SMEM),
        ],
        out_spec=pl.BlockSpec((tile_rows, tile_columns), lambda j, k, *_: (k, j)),
        out=jax.ShapeDtypeStruct((rows, columns), dtype),
        scratch=[pltpu.VMEM((tile_rows // 2 * REGISTERS, LANES), jnp.uint32)],
        scalars=[weight.array("counts")],
        interpret=interpret,
    )
