"""x @ w from NVFP4 on TPU, in the two ways that `plan` says.

E2M1 times E4M3 has six significant bits: it is exact in bfloat16. Factors of columns come in at the
end, with the powers of two that codes lack as they are read: E2M1 in the places of E5M2 is 2^-14 of
itself, and E4M3 read as e4m3b11fnuz a sixteenth. Plain words are converted by instructions.
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
from jaxtyping import Array, BFloat16, Float, Float32, Int

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import Tpu
from jentropy.pallas_kernels.tiles import LANES, SUBLANES
from jentropy.pallas_kernels.tpu import grouped as of_groups
from jentropy.pallas_kernels.tpu import nibbles, products
from jentropy.pallas_kernels.tpu.columns import WIDE, body_columns, over_columns
from jentropy.pallas_kernels.tpu.plan import TpuPlan
from jentropy.pallas_kernels.tpu.products import Body, Operand, Tile

from .layout import BLOCK, BLOCKS, CHUNK, TILE, swapped_columns
from .layout import unit as unit_of
from .plan import BODY, PRODUCT, grouped_plan, is_few, readable

HALF = nibbles.ROWS // 2


def codes_of(words: Any, word: Any, here: Any, native: int) -> list[Array]:
    """A chunk of rows as float8_e5m2, 32 at a time, from a row of words on."""
    packed = words[pl.ds(word, CHUNK // 8), here]
    if native:
        codes = pltpu.bitcast(packed, jnp.float4_e2m1fn).astype(jnp.float8_e5m2)
        return [codes[at : at + HALF] for at in range(0, CHUNK, HALF)]
    return [
        pltpu.bitcast(half, jnp.float8_e5m2)
        for at in range(0, CHUNK // 8, SUBLANES)
        for half in nibbles.bytes_of(packed[at : at + SUBLANES])
    ]


def scaled(
    words: Any, row: int, here: Any, scales: Array, native: int
) -> BFloat16[Array, "256 columns"]:
    """A chunk of rows times its scales, in the dtype of these at first."""
    parts = []
    for codes in codes_of(words, row // 8, here, native):
        numbers = codes.astype(scales.dtype)
        parts += [numbers[:BLOCKS] * scales, numbers[BLOCKS:] * scales]
    return jnp.concatenate(parts, axis=0).astype(jnp.bfloat16)


def add(
    tile: Tile,
    x: Any,
    sides: Sequence[Any],
    operands: Mapping[str, Any],
    accumulators: Sequence[Any],
    *,
    target: Tpu,
    few: bool,
    native: int,
    columns: int,
) -> None:
    """Adds x [M, KT] @ w [KT, NT].

    Args:
      few: whether rows of x are spread: [M, 16, KT].
      columns: of a loop's body.
    """
    words, scale, (out,) = operands["words"], operands["scale"], accumulators
    m, rows, wide = x.shape[0], x.shape[-1], out.shape[1]
    fp8 = jnp.float8_e4m3fn if target.native_e4m3fn else jnp.float8_e4m3b11fnuz
    dtype = jnp.bfloat16 if target.vector_bf16 and not few else jnp.float32

    def terms(here: Any, at: int, scales: Array) -> list[Array]:
        if not few:
            weights = scaled(words, at, here, scales, native)
            return [jnp.dot(x[:, at : at + CHUNK], weights, preferred_element_type=jnp.float32)]
        left = x[:, :, at : at + CHUNK].reshape(m * BLOCKS, CHUNK)
        codes = jnp.concatenate(codes_of(words, at // 8, here, native), axis=0)
        sums = jnp.dot(left, codes, preferred_element_type=jnp.float32)
        return [sums[i : i + BLOCKS] * scales for i in range(0, m * BLOCKS, BLOCKS)]

    def put(first: Any) -> None:
        step = WIDE if few else PRODUCT[target.name]
        for c in range(0, columns, step):
            here = pl.ds(pl.multiple_of(first + c, LANES), min(step, columns - c))
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
            out[:, here] += jnp.concatenate(total, axis=0)

    over_columns(wide, columns, put)


def finish(
    sides: Sequence[Any],
    operands: Mapping[str, Any],
    accumulators: Sequence[Any],
    *,
    unit: float,
    divides: int,
) -> Float32[Array, "M N"]:
    """Sums times the factors of their columns."""
    sums, factor = accumulators[0][...] * np.float32(unit), operands["factor"][...]
    return sums / factor if divides else sums * factor


def body_of(weight: ResidentTensor, plan: TpuPlan) -> Body:
    """How tiles are multiplied, of one matrix or of those of a stack."""
    arrays, few, tile = weight.arrays, is_few(plan), (plan.tile_k, plan.tile_n)
    scale = plan.tile_k // BLOCK, plan.tile_n
    words = plan.tile_k // 8, plan.tile_n
    columns = body_columns(*tile, BODY["v5e" if few else plan.target.name])
    unit, native = unit_of(weight), weight.option("native")
    unit *= 1 if plan.target.native_e4m3fn else 16
    return Body(
        name="nvfp4",
        operands={
            "words": Operand(array=arrays["words"], block=words, row=0, column=1),
            "scale": Operand(array=arrays["scale"], block=scale, row=0, column=1),
            "factor": Operand(array=arrays["factor"], block=(1, plan.tile_n), column=1),
        },
        ordered=spread if few else swapped_columns,
        add=partial(add, target=plan.target, few=few, native=native, columns=columns),
        finish=partial(finish, unit=unit, divides=weight.option("divides")),
    )


def multiply(
    x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: TpuPlan, product: Product
) -> Float32[Array, "M N"]:
    """Padded x times the padded packed matrix."""
    return products.multiply(x, weight, plan, body_of(weight, plan), product.interpret)


def grouped(
    x: Float[Array, "M K"], weight: ResidentTensor, sizes: Int[Array, " groups"], product: Product
) -> Float[Array, "M N"] | None:
    """x times the matrix of each row's group; 0 in rows of none. None of unreadable words."""
    if not readable(weight, targets.current_tpu()):
        return None
    return of_groups.multiply(x, weight, sizes, product, plan_of=grouped_plan, body_of=body_of)


def spread(x: BFloat16[Array, "M K"]) -> BFloat16[Array, "M 16 K"]:
    """Rows of x, in the order of words, once for each block: zero outside of it."""
    block = lax.broadcasted_iota(jnp.int32, (1, BLOCKS, x.shape[1]), 2) % BLOCKS
    own = block == lax.broadcasted_iota(jnp.int32, block.shape, 1)
    return jnp.where(own, swapped_columns(x)[:, None], jnp.zeros((), x.dtype))
