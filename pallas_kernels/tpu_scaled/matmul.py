"""x @ w from FP8, INT8 and INT4 with scales on TPU.

The MXU multiplies bfloat16 by eight-bit floats as they are: codes of FP8 are read from their words
(where it reads e4m3b11fnuz, E4M3's numbers are a sixteenth, and -0, which is NaN, is not in them),
and an integer below 16 in the low bits of E4M3 is that integer times a constant, subnormals and
first binade being evenly spaced. So INT4 costs a mask and a shift. INT8 is converted to bfloat16.

With a group of rows g in a column n, sums over k in g,

    y[m, n] = sum_g scale[g, n] * (sum_k x[m, k] * code[k, n] - zero[g, n] * sum_k x[m, k])

For many rows of x and short groups the codes are scaled instead, as float32 or, exactly, as
bfloat16 where scales are powers of two. Other groups shorter than the MXU is deep, and short ones
with few rows of x, are multiplied together: x is repeated for each, with zeros in the others'
places. Where scales are narrow enough,
zeros come off by one exact product of the sums of x with zero * scale; scales per column, and the
constant, are multiplied in at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float, Float32, Int, Shaped, UInt32

from jentropy.pallas_kernels import bf16
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.integers import INTEGERS
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES
from jentropy.pallas_kernels.tpu import grouped as of_groups
from jentropy.pallas_kernels.tpu import products
from jentropy.pallas_kernels.tpu.plan import TpuPlan
from jentropy.pallas_kernels.tpu.products import Body, Operand, Tile

from .layout import column_scales
from .plan import ACCUMULATORS, Kind, depth_of, grouped_plan, kind_of

CHANNEL_ROWS, CHANNEL_COLUMNS = 256, 256  # of a product where scales are per column
EXPANDED_ROWS = 128  # of a product with scaled weights
FEW, FEW_COLUMNS = 32, 2048  # rows of x for which a product takes many columns
TERMS = {  # which parts of (sum of x, zero * scale) are multiplied, by the parts of the latter
    1: ((0, 0), (1, 0), (2, 0)),
    2: ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1)),
    3: ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2)),
}


def operand(
    words: UInt32[Array, "rows columns"], kind: Kind, half: int, integers: bool = False
) -> Array:
    """Codes of words as what the MXU multiplies: four rows a word.

    Args:
      half: which nibbles, of codes of four bits.
      integers: whether those are wanted as integers instead.
    """
    fp8 = jnp.float8_e4m3fn if kind.native else jnp.float8_e4m3b11fnuz
    if kind.bits == 4:
        nibbles = (words >> (4 * half)) & np.uint32(0x0F0F0F0F)
        return pltpu.bitcast(nibbles, jnp.int8 if integers else fp8)
    if kind.element in INTEGERS:
        return pltpu.bitcast(words, jnp.int8).astype(jnp.bfloat16)
    if kind.element == "FP8_E5M2":
        return pltpu.bitcast(words, jnp.float8_e5m2)
    return pltpu.bitcast(words, fp8)


def rows_of(
    words: Any, at: int, rows: int, columns: slice, kind: Kind, integers: bool = False
) -> Array:
    """Operand of rows at .. at + rows of a tile; of codes of four bits, in one of its halves."""
    half = 0
    if kind.bits == 4:
        half, at = divmod(at, 4 * words.shape[0])
    return operand(words[at // 4 : (at + rows) // 4, columns], kind, half, integers)


def repeated(x: BFloat16[Array, "M depth"], group: int) -> BFloat16[Array, "copies depth"]:
    """Rows of x once for each group, zero in the other groups."""
    depth = x.shape[1]
    if group >= depth:
        return x
    lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    zero = jnp.zeros((), x.dtype)
    groups = [(lane >= g) & (lane < g + group) for g in range(0, depth, group)]
    return jnp.concatenate([jnp.where(one, x, zero) for one in groups], axis=0)


def add(
    tile: Tile,
    x: Any,
    sides: Sequence[Any],
    operands: Mapping[str, Any],
    accumulators: Sequence[Any],
    *,
    kind: Kind,
    depth: int,
) -> None:
    """Adds x [M, KT] @ w [KT, NT]."""
    words, zero = operands["words"], operands.get("zero")
    scale: Any = operands.get("scale")
    (acc,), columns = accumulators, accumulators[0].shape[1]
    if not kind.group:
        _add_channel(x, words, acc, kind)
        return
    if kind.expanded:
        _add_expanded(x, words, acc, kind, _numbers(scale[0], kind), _zeros(zero, kind))
        return
    scales: Any = None if kind.block else _numbers(scale[0], kind)
    if kind.zeros == "product":
        terms = bf16.parts(_zeros(zero, kind) * scales, kind.parts)
        right = jnp.concatenate([terms[i] for _, i in TERMS[kind.parts]], axis=0)
        acc[...] -= jnp.dot(
            sides[0][...], right.astype(jnp.bfloat16), preferred_element_type=jnp.float32
        )

    def factor(g: int, c: int) -> Array:
        if scales is not None:
            return scales[g : g + 1, c : c + LANES]
        wide = pl.cdiv(columns, kind.block)
        if scale.ndim == 1:
            row = tile.k * (x.shape[1] // kind.group) + g
            return scale[(row * tile.columns + tile.j) * wide + c // kind.block]
        last = scale.shape[-1] - 1  # a tile may stick out
        return scale[tile.k, g, jnp.minimum(tile.j * wide + c // kind.block, last)]

    def off(g: int, c: int) -> Array | None:
        if kind.zeros != "each":
            return None
        zeros = _zeros(zero, kind)
        if not isinstance(zeros, np.floating):
            zeros = zeros[g : g + 1, c : c + LANES]
        return sides[0][:, g : g + 1] * zeros

    _add_groups(x, words, acc, kind, depth, factor, off)


def finish(
    sides: Sequence[Any],
    operands: Mapping[str, Any],
    accumulators: Sequence[Any],
    *,
    kind: Kind,
    unit: float,
) -> Float32[Array, "M columns"]:
    """The sum times what all rows of a column share."""
    total = accumulators[0][...]
    if kind.zeros and not kind.group:
        total -= sides[0][...] * _zeros(operands.get("zero"), kind)
    if "column" in operands:
        total *= operands["column"][...].astype(jnp.float32).reshape(1, -1)
    return total if unit == 1 else total * np.float32(unit)


def _numbers(scale: Array, kind: Kind) -> Float32[Array, "groups columns"]:
    if scale.dtype != jnp.uint8:
        return scale.astype(jnp.float32)
    return lax.bitcast_convert_type((scale.astype(jnp.int32) + kind.shift) << 23, jnp.float32)


def _add_expanded(x: Any, words: Any, acc: Any, kind: Kind, scales: Array, zeros: Any) -> None:
    """Codes, minus zeros, times scales as float32; bfloat16 parts of that are multiplied."""
    rows, wide, group = EXPANDED_ROWS, CHANNEL_COLUMNS, kind.group
    for n in range(0, acc.shape[1], wide):
        here = slice(n, min(n + wide, acc.shape[1]))
        total = None
        for at in range(0, x.shape[1], rows):
            codes = rows_of(words, at, rows, here, kind, integers=True).astype(jnp.bfloat16)
            blocks = []
            for i in range(0, rows, min(group, rows)):
                g = (at + i) // group
                block = codes[i : i + min(group, rows)]
                if kind.expanded == 1:  # powers of two: exact
                    blocks.append(block * scales[g : g + 1, here].astype(jnp.bfloat16))
                    continue
                zero = zeros[g : g + 1, here] if isinstance(zeros, jax.Array) else zeros
                blocks.append((block.astype(jnp.float32) - zero) * scales[g : g + 1, here])
            weights = jnp.concatenate(blocks, axis=0)
            terms = [weights] if kind.expanded == 1 else bf16.parts(weights, kind.expanded)
            for part in terms:
                product = jnp.dot(
                    x[:, at : at + rows],
                    part.astype(jnp.bfloat16),
                    preferred_element_type=jnp.float32,
                )
                total = product if total is None else total + product
        acc[:, here] += total


def _zeros(zero: Any, kind: Kind) -> Any:
    """Zero points of a tile, float32[groups, columns], or one for all."""
    offset = np.float32(kind.offset)
    return offset if zero is None else zero[0].astype(jnp.float32) + offset


def _add_channel(x: Any, words: Any, acc: Any, kind: Kind) -> None:
    rows, wide = CHANNEL_ROWS, CHANNEL_COLUMNS
    for n in range(0, acc.shape[1], wide):
        here = slice(n, min(n + wide, acc.shape[1]))
        total = None
        for at in range(0, x.shape[1], rows):
            product = jnp.dot(
                x[:, at : at + rows],
                rows_of(words, at, rows, here, kind),
                preferred_element_type=jnp.float32,
            )
            total = product if total is None else total + product
        acc[:, here] += total


def _add_groups(
    x: Any,
    words: Any,
    acc: Any,
    kind: Kind,
    depth: int,
    factor: Callable[[int, int], Array],
    off: Callable[[int, int], Array | None],
) -> None:
    m, group, columns = x.shape[0], kind.group, acc.shape[1]
    wide = FEW_COLUMNS if m <= FEW else CHANNEL_COLUMNS
    for n in range(0, columns, wide):
        here = slice(n, min(n + wide, columns))
        lanes = range(here.start, here.stop, LANES)
        totals: dict[int, Array] = {}
        for at in range(0, x.shape[1], depth):
            products = jnp.dot(
                repeated(x[:, at : at + depth], group),
                rows_of(words, at, depth, here, kind),
                preferred_element_type=jnp.float32,
            )
            for i in range(max(depth // group, 1)):
                g = at // group + i
                for c in lanes:
                    part = products[i * m : (i + 1) * m, c - n : c - n + LANES]
                    zero = off(g, c) if at % group == 0 else None
                    part = (part if zero is None else part - zero) * factor(g, c)
                    totals[c] = totals[c] + part if c in totals else part
        for c, total in totals.items():
            acc[:, c : c + LANES] += total


def body_of(weight: ResidentTensor, plan: TpuPlan) -> Body:
    """How tiles are multiplied, of one matrix or of those of a stack."""
    kind, arrays = kind_of(weight, plan.m, plan.target), weight.arrays
    unit = 1.0
    if kind.bits == 4 and not kind.expanded:
        unit = plan.target.integer_unit
    elif kind.element == "FP8_E4M3" and not kind.native:
        unit = 16.0

    def of_groups(array: Array) -> Operand:
        block = (1, array.shape[-2], plan.tile_n)
        return Operand(array=array, block=block, row=0 if kind.group else None, column=2)

    words = (plan.tile_k // (32 // kind.bits), plan.tile_n)
    operands = {"words": Operand(array=arrays["words"], block=words, row=0, column=1)}
    if kind.block:
        operands["scale"] = _scalars(weight, kind, plan)
    elif kind.group:
        operands["scale"] = of_groups(arrays["scale"])
    if "zero" in arrays:
        operands["zero"] = of_groups(arrays["zero"])
    factor = unit * (0.5 if kind.shift else 1.0)
    if not weight.stack or "nan" in arrays or (weight.option("block") and not kind.group):
        columns, factor = _columns(weight, kind, factor), 1.0
        operands["column"] = Operand(array=columns, block=(1, plan.tile_n), column=1, own=True)
    elif not kind.group:
        operands["column"] = of_groups(arrays["scale"])
    needs_sums = kind.zeros and not kind.expanded
    return Body(
        name="scaled",
        operands=operands,
        sides=lambda x: [_sums(x, kind, plan, unit)] if needs_sums else [],
        accumulators=ACCUMULATORS,
        add=partial(add, kind=kind, depth=depth_of(kind, plan)),
        finish=partial(finish, kind=kind, unit=factor),
    )


def _columns(weight: ResidentTensor, kind: Kind, unit: float) -> Float32[Array, "*groups 1 N"]:
    """What products with a column are multiplied by in the end."""
    shape = (*weight.stack, 1, weight.arrays["words"].shape[-1])
    column = jnp.full(shape, unit, jnp.float32)
    if not kind.group:
        column *= column_scales(weight)[..., 0, :, :].astype(jnp.float32)
    return jnp.where(weight.array("nan"), jnp.nan, column) if "nan" in weight.arrays else column


def _scalars(weight: ResidentTensor, kind: Kind, plan: TpuPlan) -> Operand:
    """Scales of blocks, of one matrix by group, column tile and block of the tile."""
    scale = weight.arrays["scale"]
    if weight.stack:
        copied = scale.dtype != jnp.float32  # scalar memory has 32 bits
        scale = weight.array("scale").astype(jnp.float32) if copied else scale
        return Operand(array=scale, block=scale.shape[-3:], scalars=True, own=copied)
    blocks = plan.grid[0] * pl.cdiv(plan.tile_n, kind.block)
    rows = weight.array("scale").reshape(-1, scale.shape[-1]).astype(jnp.float32)
    flat = jnp.pad(rows, ((0, 0), (0, blocks - rows.shape[1]))).reshape(-1)
    return Operand(array=flat, block=flat.shape, scalars=True, own=True)


def multiply(
    x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: TpuPlan, product: Product
) -> Float32[Array, "M N"]:
    """Padded x times the padded packed matrix."""
    return products.multiply(x, weight, plan, body_of(weight, plan), product.interpret)


def grouped(
    x: Float[Array, "M K"], weight: ResidentTensor, sizes: Int[Array, " groups"], product: Product
) -> Float[Array, "M N"]:
    """x times the matrix of each row's group; 0 in rows of none."""
    return of_groups.multiply(x, weight, sizes, product, plan_of=grouped_plan, body_of=body_of)


def _sums(
    x: BFloat16[Array, "M K"], kind: Kind, plan: TpuPlan, unit: float
) -> Shaped[Array, "steps M groups"]:
    """Sums of x over groups, in the units of the products, as the kernel takes them."""
    steps = plan.k // plan.tile_k if kind.group else 1
    sums = x.astype(jnp.float32).reshape(x.shape[0], steps, -1, kind.group or plan.k).sum(-1)
    sums = sums.swapaxes(0, 1) / unit
    if kind.zeros != "product":
        return sums
    terms = bf16.parts(sums)
    return jnp.concatenate([terms[i] for i, _ in TERMS[kind.parts]], axis=-1).astype(jnp.bfloat16)
