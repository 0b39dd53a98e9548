"""x @ w from window12 on TPU.

The main product takes x * 2^shift and slots as they unpack, a power of two short of the weights in
every column, which the result is multiplied by. Escapes have slots of 0. Their products with the
unscaled x are summed in an accumulator of their own, 128 at a time: x is gathered by rows of the
escapes from its registers, and scattered to their columns by a one-hot product on the MXU.
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
from jaxtyping import Array, BFloat16, Float32, Int32

from jentropy.codecs import window12
from jentropy.pallas_kernels.bf16 import BIAS
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES
from jentropy.pallas_kernels.tpu.calls import call, spec
from jentropy.pallas_kernels.tpu.plan import TpuPlan

from .layout import COLUMN_BLOCK, ESCAPES, UPPER, row_of
from .plan import ACCUMULATORS

QUARTERS = 4
ROWS = 64  # word rows that are unpacked for one product
COLUMNS = 256  # columns of one
INF = 0x7F800000


def patch(
    x: BFloat16[Array, "M K"], where: Array, pair: Array, columns: int
) -> list[Float32[Array, "M 128"]]:
    """Products of x with 128 escapes, for every 128 columns of a tile.

    Args:
      where, pair: int32[1, 128], see the layout. NaN and Inf, which a one-hot product would spread
        over other columns, are left out.
    """
    m, k = x.shape
    row = row_of(where)
    bits = jnp.where(where & UPPER != 0, pair & np.int32(-0x10000), pair << 16)
    value = lax.bitcast_convert_type(jnp.where(bits & INF == INF, 0, bits), jnp.float32)
    pairs = pltpu.bitcast(x, jnp.uint32)  # two rows of x in each
    shape = (m // 2, LANES)
    lane, tile = (jnp.broadcast_to(i, shape) for i in (row & (LANES - 1), row >> 7))
    taken = jnp.zeros(shape, jnp.uint32)
    for t in range(k // LANES):
        register = jnp.take_along_axis(pairs[:, t * LANES : (t + 1) * LANES], lane, axis=1)
        taken = jnp.where(tile == t, register, taken)
    column = jnp.broadcast_to(where >> COLUMN_BLOCK & 7, shape)
    left = [jnp.where(column == t, taken, np.uint32(0)) for t in range(columns // LANES)]
    index = lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0)
    onehot = jnp.where(index == (where & (LANES - 1)), value, 0.0).astype(jnp.bfloat16)
    products = lax.dot_general(
        pltpu.bitcast(jnp.concatenate(left, axis=0), jnp.bfloat16),
        onehot,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return [products[t * m : (t + 1) * m] for t in range(columns // LANES)]


def kernel(
    counts: Any,
    x: Any,
    words: Any,
    escapes: Any,
    column: Any,
    out: Any,
    main: Any,
    patches: Any,
    *,
    shift: int,
    inline: int,
) -> None:
    """One tile: adds x [M, KT] @ w [KT, NT]; the last one along K writes out [M, NT]."""
    k, columns = pl.program_id(1), out.shape[1]
    quarter = x.shape[1] // QUARTERS
    rows = min(ROWS, quarter // 2)

    @pl.when(k == 0)
    def _() -> None:
        main[...] = jnp.zeros_like(main)
        patches[...] = jnp.zeros_like(patches)

    def add_chunk(c: Any) -> None:
        line = 2 * c
        where, pair = (escapes[0, 0, pl.ds(line + i, 1), :] for i in (0, 1))
        for t, product in enumerate(patch(x[...], where, pair, columns)):
            patches[:, t * LANES : (t + 1) * LANES] += product

    for c in range(inline):  # those that most tiles have: the compiler mixes them with what follows
        add_chunk(c)
    scaled = x[...] * jnp.bfloat16(2.0**shift)
    for n in range(0, columns, COLUMNS):
        here = slice(n, min(n + COLUMNS, columns))
        total = None
        for r in range(0, quarter // 2, rows):
            packed = (words[i, r : r + rows, here] for i in range(window12.WORDS))
            for q, slots in enumerate(window12.unpack_words(*packed)):
                at = q * quarter + 2 * r
                product = jnp.dot(
                    scaled[:, at : at + 2 * rows],
                    pltpu.bitcast(slots, jnp.bfloat16),
                    preferred_element_type=jnp.float32,
                )
                total = product if total is None else total + product
        main[:, here] += total
    chunks = (counts[pl.program_id(0), k] + (ESCAPES - 1)) >> 7

    @pl.loop(inline, chunks)
    def _(c: Array) -> None:
        add_chunk(c)

    @pl.when(k == pl.num_programs(1) - 1)
    def _() -> None:
        out[...] = main[...] * column[...] + patches[...]


def multiply(
    x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: TpuPlan, product: Product
) -> Float32[Array, "M N"]:
    """Padded x times the padded packed matrix."""
    chex.assert_shape(x, (plan.m, plan.k))
    arrays, lists, shift = weight.arrays, weight.arrays["escapes"], weight.option("shift")
    # The power of two that a column still lacks; top - WINDOW is the exponent field of slot 0.
    power = weight.array("top").astype(jnp.int32) - window12.WINDOW - shift
    column = lax.bitcast_convert_type((power + BIAS) << 23, jnp.float32)
    y = call(
        partial(kernel, shift=shift, inline=weight.option("inline")),
        weight,
        *(x, arrays["words"], lists, column),
        name="matmul_window12",
        grid=plan.grid,
        in_specs=[
            pl.BlockSpec((plan.m, plan.tile_k), lambda j, k, *_: (0, k)),
            spec(weight, (3, plan.tile_k // 8, plan.tile_n), lambda j, k: (0, k, j)),
            spec(weight, (1, 1, *lists.shape[-2:]), lambda j, k: (j, k, 0, 0)),
            pl.BlockSpec((1, plan.tile_n), lambda j, k, *_: (0, j)),
        ],
        out_spec=pl.BlockSpec((plan.m, plan.tile_n), lambda j, k, *_: (0, j)),
        out=jax.ShapeDtypeStruct((plan.m, plan.n), jnp.float32),
        scratch=[pltpu.VMEM((plan.m, plan.tile_n), jnp.float32)] * ACCUMULATORS,
        scalars=[weight.array("counts")],
        vmem_bytes=plan.vmem_limit_bytes,
        interpret=product.interpret,
    )
    if "special" not in arrays:
        return y
    return y + _special_products(x, weight, weight.array("special"), plan)


def _special_products(
    x: BFloat16[Array, "M K"],
    weight: ResidentTensor,
    special: Int32[Array, "tiles steps 3 n"],
    plan: TpuPlan,
) -> Float32[Array, "M N"]:
    """Products with NaN and Inf, which `patch` leaves out."""
    tiles, steps = (jnp.arange(n) for n in special.shape[:2])
    row = special[..., 0, :] + steps[:, None] * weight.option("tile_rows")
    column = special[..., 1, :] + tiles[:, None, None] * weight.option("tile_columns")
    code = special[..., 2, :]
    column = jnp.where(code == 0, plan.n, column).reshape(-1)
    value = lax.bitcast_convert_type(code.reshape(-1) << 16, jnp.float32)
    products = x[:, row.reshape(-1)].astype(jnp.float32) * value
    return jnp.zeros((plan.m, plan.n), jnp.float32).at[:, column].add(products, mode="drop")
