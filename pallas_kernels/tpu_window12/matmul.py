"""x @ w from window12 on TPU.

The main product takes x * 2^shift and slots as they unpack, a power of two short of the weights in
every column, which the result is multiplied by. Escapes have slots of 0. Their products with the
unscaled x are summed in an accumulator of their own, 128 at a time: x is gathered by rows of the
escapes from its registers, and scattered to their columns by a one-hot product on the MXU.
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
from jaxtyping import Array, BFloat16, Bool, Float, Float32, Int, Int32, UInt8

from jentropy.codecs import window12
from jentropy.pallas_kernels.bf16 import BIAS
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES
from jentropy.pallas_kernels.tpu import grouped as of_groups
from jentropy.pallas_kernels.tpu import products
from jentropy.pallas_kernels.tpu.plan import TpuPlan
from jentropy.pallas_kernels.tpu.products import Body, Operand, Tile

from .layout import COLUMN_BLOCK, ESCAPES, UPPER, row_of
from .plan import ACCUMULATORS, grouped_plan

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


def add(
    tile: Tile,
    x: Any,
    sides: Sequence[Any],
    operands: Mapping[str, Any],
    accumulators: Sequence[Any],
    *,
    shift: int,
    inline: int,
) -> None:
    """Adds x [M, KT] @ w [KT, NT], slots and escapes apart."""
    words, escapes, (main, patches) = operands["words"], operands["escapes"], accumulators
    columns = main.shape[1]
    quarter = x.shape[1] // QUARTERS
    rows = min(ROWS, quarter // 2)

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
    chunks = (operands["counts"][tile.j, tile.k] + (ESCAPES - 1)) >> 7

    @pl.loop(inline, chunks)
    def _(c: Array) -> None:
        add_chunk(c)


def finish(
    sides: Sequence[Any], operands: Mapping[str, Any], accumulators: Sequence[Any], *, shift: int
) -> Float32[Array, "M columns"]:
    """Both sums, that of slots by the power of two that a column still lacks."""
    column, (main, patches) = operands["column"][...], accumulators
    if column.dtype == jnp.uint8:
        column = powers_of(column, shift)
    return main[...] * column + patches[...]


def powers_of(top: UInt8[Array, "*groups 1 N"], shift: int) -> Float32[Array, "*groups 1 N"]:
    """The power of two that a column lacks; top - WINDOW is the exponent field of slot 0."""
    power = top.astype(jnp.int32) - window12.WINDOW - shift
    return lax.bitcast_convert_type((power + BIAS) << 23, jnp.float32)


def body_of(weight: ResidentTensor, plan: TpuPlan) -> Body:
    """How tiles are multiplied."""
    arrays, shift = weight.arrays, weight.option("shift")
    counts, lists, column = arrays["counts"], arrays["escapes"], arrays["top"]
    if not weight.stack:
        column = powers_of(weight.array("top"), shift)
    return Body(
        name="window12",
        operands={
            "counts": Operand(array=counts, block=counts.shape[-2:], scalars=True),
            "words": Operand(
                array=arrays["words"], block=(3, plan.tile_k // 8, plan.tile_n), row=1, column=2
            ),
            "escapes": Operand(array=lists, block=(1, 1, *lists.shape[-2:]), row=1, column=0),
            "column": Operand(array=column, block=(1, plan.tile_n), column=1, own=not weight.stack),
        },
        accumulators=ACCUMULATORS,
        add=partial(add, shift=shift, inline=weight.option("inline")),
        finish=partial(finish, shift=shift),
    )


def multiply(
    x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: TpuPlan, product: Product
) -> Float32[Array, "M N"]:
    """Padded x times the padded packed matrix."""
    y = products.multiply(x, weight, plan, body_of(weight, plan), product.interpret)
    if "special" not in weight.arrays:
        return y
    return _add_special(y, x, weight, weight.array("special"))


def grouped(
    x: Float[Array, "M K"], weight: ResidentTensor, sizes: Int[Array, " groups"], product: Product
) -> Float[Array, "M N"]:
    """x times the matrix of each row's group; 0 in rows of none."""
    y = of_groups.multiply(x, weight, sizes, product, plan_of=grouped_plan, body_of=body_of)
    if "special" not in weight.arrays:
        return y
    ends = jnp.cumsum(sizes, dtype=jnp.int32)[:, None]
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)
    own = (rows < ends) & (rows >= ends - sizes[:, None])
    return _add_special(y, x, weight, weight.array("special"), own)


def _add_special(
    y: Float[Array, "M N"],
    x: Float[Array, "M K"],
    weight: ResidentTensor,
    special: Int32[Array, "*groups tiles steps 3 n"],
    own: Bool[Array, "groups M"] | None = None,
) -> Float[Array, "M N"]:
    """Adds products with NaN and Inf, which `patch` leaves out.

    Args:
      own: which rows meet the matrix of a group; None: there is one matrix, and all do.
    """
    tiles, steps = (jnp.arange(size) for size in special.shape[-4:-2])
    row = special[..., 0, :] + steps[:, None] * weight.option("tile_rows")
    column = special[..., 1, :] + tiles[:, None, None] * weight.option("tile_columns")
    code = special[..., 2, :]
    column = jnp.where(code == 0, y.shape[1], column)
    value = lax.bitcast_convert_type(code << 16, jnp.float32)
    products = x[:, row.reshape(-1)].astype(jnp.float32) * value.reshape(-1)
    if own is not None:
        products = jnp.where(jnp.repeat(own, row[0].size, axis=0).T, products, 0)
    added = jnp.zeros(y.shape, jnp.float32).at[:, column.reshape(-1)].add(products, mode="drop")
    return (y.astype(jnp.float32) + added).astype(y.dtype)
