"""A tile of window12 to dense BF16 on TPU, every code of it.

Two codes stay in one uint32 from the words to the result, so that nothing is ever read as a float.
A weight inside the window gets its exponent's base added where its rank is not 0. Escapes are few:
their codes are put in one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jentropy.codecs import window12
from jentropy.pallas_kernels.compiling import compiler_params
from jentropy.pallas_kernels.layouts.tiles import LANES, SUBLANES

if TYPE_CHECKING:
    from jentropy.pallas_kernels.resident import ResidentTensor

QUARTERS = 4
RANK = 0x0780
HALF = 16
UNROLL = 8  # escapes that are put in together
STEP = 16  # word rows that are unpacked together: what fits in registers


def kernel(counts: Any, words: Any, top: Any, escapes: Any, out: Any, pairs: Any) -> None:
    """One tile: words [3, KT / 8, NT] to out [KT, NT], by way of pairs [KT / 2, NT]."""
    quarter = pairs.shape[0] // QUARTERS
    low = (top[...].astype(jnp.int32) - window12.WINDOW).astype(jnp.uint32) << 7
    high = low << HALF

    @pl.loop(0, quarter, step=STEP)
    def _(row: Array) -> None:
        own = [words[i, pl.ds(pl.multiple_of(row, STEP), STEP), :] for i in range(window12.WORDS)]
        for q, slots in enumerate(window12.unpack_words(*own)):
            base = jnp.where(slots & np.uint32(RANK) != 0, low, np.uint32(0))
            base |= jnp.where(slots & np.uint32(RANK << HALF) != 0, high, np.uint32(0))
            at = pl.multiple_of(q * quarter + row, STEP)
            pairs[pl.ds(at, STEP), :] = slots + base

    sublane, lane = (lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), axis) for axis in (0, 1))
    place_of = sublane << 7 | lane

    def patch(line: Array, place: Array) -> None:
        where, code = escapes[0, 0, line, place], escapes[0, 0, line + 1, place]
        rows, lanes = where >> 16, (where >> 10) & 0x3F
        at = (
            pl.ds(pl.multiple_of(rows * SUBLANES, SUBLANES), SUBLANES),
            pl.ds(pl.multiple_of(lanes * LANES, LANES), LANES),
        )
        code = lax.bitcast_convert_type(code, jnp.uint32)
        pairs[at] |= jnp.where(place_of == (where & 0x3FF), code, np.uint32(0))

    # Lists are filled up with code 0, which changes nothing.
    @pl.loop(0, pl.cdiv(counts[pl.program_id(0), pl.program_id(1)], UNROLL))
    def _(e: Array) -> None:
        line, place = e >> 4 << 1, (e & (LANES // UNROLL - 1)) * UNROLL
        for i in range(UNROLL):
            patch(line, place + i)

    out[...] = pltpu.bitcast(pairs[...], jnp.bfloat16).astype(out.dtype)


def dense(weight: ResidentTensor, dtype: Any, *, interpret: Any) -> Array:
    """The packed matrix, padded to whole tiles."""
    arrays, lists = weight.arrays, weight.arrays["escapes"]
    tile_rows = weight.option("tile_rows")
    rows, columns = 8 * arrays["words"].shape[1], arrays["words"].shape[2]
    tile_columns = min(weight.option("tile_columns"), columns)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=lists.shape[:2],
            in_specs=[
                pl.BlockSpec((3, tile_rows // 8, tile_columns), lambda j, k, *_: (0, k, j)),
                pl.BlockSpec((1, tile_columns), lambda j, k, *_: (0, j)),
                pl.BlockSpec(
                    (1, 1, *lists.shape[2:]),
                    lambda j, k, *_: (j, k, 0, 0),
                    memory_space=pltpu.SMEM,
                ),
            ],
            out_specs=pl.BlockSpec((tile_rows, tile_columns), lambda j, k, *_: (k, j)),
            scratch_shapes=[pltpu.VMEM((tile_rows // 2, tile_columns), jnp.uint32)],
        ),
        out_shape=jax.ShapeDtypeStruct((rows, columns), dtype),
        name="decode_window12",
        interpret=interpret,
        compiler_params=compiler_params(),
    )(arrays["counts"], arrays["words"], arrays["top"].astype(jnp.int32), lists)
