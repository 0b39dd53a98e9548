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

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float32, Shaped, UInt32

from jentropy.pallas_kernels import bf16
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES
from jentropy.pallas_kernels.tpu.calls import call, spec
from jentropy.pallas_kernels.tpu.plan import TpuPlan

from .blocks import INTEGERS
from .layout import column_scales
from .plan import ACCUMULATORS, Kind, depth_of, kind_of

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


def kernel(*refs: Any, kind: Kind, depth: int) -> None:
    """One tile: adds x [M, KT] @ w [KT, NT]; the last one along K writes out [M, NT]."""
    left: Any = iter(refs)
    scalars: Any = next(left) if kind.block else None
    x, words, column = next(left), next(left), next(left)
    scale: Any = next(left) if kind.group and not kind.block else None
    sums: Any = next(left) if kind.zeros and not kind.expanded else None
    *zero, out, acc = left
    columns = out.shape[1]
    k, steps = pl.program_id(1), pl.num_programs(1)

    @pl.when(k == 0)
    def _() -> None:
        acc[...] = jnp.zeros_like(acc)

    if not kind.group:
        _add_channel(x, words, acc, kind)
    elif kind.expanded:
        _add_expanded(x, words, acc, kind, _numbers(scale[0], kind), _zeros(zero, kind))
    else:
        scales: Any = None if scale is None else _numbers(scale[0], kind)
        if kind.zeros == "product":
            terms = bf16.parts(_zeros(zero, kind) * scales, kind.parts)
            right = jnp.concatenate([terms[i] for _, i in TERMS[kind.parts]], axis=0)
            acc[...] -= jnp.dot(
                sums[0], right.astype(jnp.bfloat16), preferred_element_type=jnp.float32
            )

        def factor(g: int, c: int) -> Array:
            if scalars is None:
                return scales[g : g + 1, c : c + LANES]
            row, wide = k * (x.shape[1] // kind.group) + g, pl.cdiv(columns, kind.block)
            at = (row * pl.num_programs(0) + pl.program_id(0)) * wide + c // kind.block
            return scalars[at]

        def off(g: int, c: int) -> Array | None:
            if kind.zeros != "each":
                return None
            zeros = _zeros(zero, kind)
            if not isinstance(zeros, np.floating):
                zeros = zeros[g : g + 1, c : c + LANES]
            return sums[0, :, g : g + 1] * zeros

        _add_groups(x, words, acc, kind, depth, factor, off)

    @pl.when(k == steps - 1)
    def _() -> None:
        total = acc[...]
        if kind.zeros and not kind.group:
            total -= sums[0] * _zeros(zero, kind)
        out[...] = total * column[...]


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


def _zeros(zero: list[Any], kind: Kind) -> Any:
    """Zero points of a tile, float32[groups, columns], or one for all."""
    offset = np.float32(kind.offset)
    return zero[0][0].astype(jnp.float32) + offset if zero else offset


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


def multiply(
    x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: TpuPlan, product: Product
) -> Float32[Array, "M N"]:
    """Padded x times the padded packed matrix."""
    chex.assert_shape(x, (plan.m, plan.k))
    kind, arrays = kind_of(weight, plan.m, plan.target), weight.arrays
    per_word = 32 // kind.bits
    unit = 1.0
    if kind.bits == 4 and not kind.expanded:
        unit = plan.target.integer_unit
    elif kind.element == "FP8_E4M3" and not kind.native:
        unit = 16.0
    column = jnp.full((1, plan.n), unit, jnp.float32)
    if kind.shift:
        column *= 0.5
    if not kind.group:
        column *= column_scales(weight)[0].astype(jnp.float32)
    if "nan" in arrays:
        column = jnp.where(weight.array("nan"), jnp.nan, column)

    inputs = [x, arrays["words"], column]
    specs = [
        pl.BlockSpec((plan.m, plan.tile_k), lambda j, k, *_: (0, k)),
        spec(weight, (plan.tile_k // per_word, plan.tile_n), lambda j, k: (k, j)),
        pl.BlockSpec((1, plan.tile_n), lambda j, k, *_: (0, j)),
    ]

    def add_groups(array: Array) -> None:
        inputs.append(array)
        block = (1, array.shape[-2], plan.tile_n)
        specs.append(spec(weight, block, lambda j, k: (k if kind.group else 0, 0, j)))

    if kind.group and not kind.block:
        add_groups(arrays["scale"])
    if kind.zeros and not kind.expanded:
        sums = _sums(x, kind, plan, unit)
        inputs.append(sums)
        block = (1, *sums.shape[1:])
        specs.append(pl.BlockSpec(block, lambda j, k, *_: (k if kind.group else 0, 0, 0)))
    if "zero" in arrays:
        add_groups(arrays["zero"])
    return call(
        partial(kernel, kind=kind, depth=depth_of(kind, plan)),
        weight,
        *inputs,
        name="matmul_scaled",
        grid=plan.grid,
        in_specs=specs,
        out_spec=pl.BlockSpec((plan.m, plan.tile_n), lambda j, k, *_: (0, j)),
        out=jax.ShapeDtypeStruct((plan.m, plan.n), jnp.float32),
        scratch=[pltpu.VMEM((plan.m, plan.tile_n), jnp.float32)] * ACCUMULATORS,
        scalars=[_scalars(weight.array("scale"), kind, plan)] if kind.block else [],
        vmem_bytes=plan.vmem_limit_bytes,
        interpret=product.interpret,
    )


def _scalars(
    scale: Float32[Array, "steps groups blocks"], kind: Kind, plan: TpuPlan
) -> Float32[Array, " entries"]:
    """Scales of blocks by group, column tile and block of the tile."""
    blocks = plan.grid[0] * pl.cdiv(plan.tile_n, kind.block)
    rows = scale.reshape(-1, scale.shape[-1]).astype(jnp.float32)
    return jnp.pad(rows, ((0, 0), (0, blocks - rows.shape[1]))).reshape(-1)


def _sums(
    x: BFloat16[Array, "M K"], kind: Kind, plan: TpuPlan, unit: float
) -> Shaped[Array, "steps M groups"]:
    """Sums of x over groups, in the units of the products, as the kernel takes them."""
    steps = plan.k // plan.tile_k if kind.group else 1
    sums = x.astype(jnp.float32).reshape(plan.m, steps, -1, kind.group or plan.k).sum(-1)
    sums = sums.swapaxes(0, 1) / unit
    if kind.zeros != "product":
        return sums
    terms = bf16.parts(sums)
    return jnp.concatenate([terms[i] for i, _ in TERMS[kind.parts]], axis=-1).astype(jnp.bfloat16)
