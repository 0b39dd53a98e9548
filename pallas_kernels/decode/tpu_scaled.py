"""A tile of scaled codes to dense numbers on TPU: the numbers of `formats.dequantize`.

E5M2 becomes float32 by integer operations, since a conversion may drop the sign of a NaN. Products
are the reference's: one float32 product a number, rounded once; powers of two so small that
products may be subnormal are multiplied as integers.
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
from jaxtyping import Array, Float32, Int32, UInt32

from jentropy.formats import FP8_E8M0, ElementFormat
from jentropy.formats.dequantizing import times_power_of_two
from jentropy.pallas_kernels import stacks
from jentropy.pallas_kernels.compiling import compiler_params
from jentropy.pallas_kernels.layouts import tpu_scaled
from jentropy.pallas_kernels.layouts.tiles import LANES
from jentropy.pallas_kernels.resident import ResidentTensor

NAME = "decode_scaled"
TILE_COLUMNS = 512
ROWS = 32  # decoded together: what fits in registers; no group is smaller
INF, NAN = 0x7F800000, 0x7FC00000
NIBBLE = 4


def numbers_of(
    words: UInt32[Array, "words columns"], element: ElementFormat, half: int
) -> Float32[Array, "rows columns"]:
    """Numbers of four rows a word, exactly; integers have their offset.

    Args:
      half: which nibbles, of codes of four bits.
    """
    if element.code_bits == NIBBLE:
        words = (words >> (NIBBLE * half)) & np.uint32(0x0F0F0F0F)
    if tpu_scaled.is_integer(element):
        return pltpu.bitcast(words, jnp.int8).astype(jnp.int32).astype(jnp.float32)
    if element.name == "FP8_E4M3":  # without -0 and NaN, of which a conversion may drop the sign
        return pltpu.bitcast(words, jnp.float8_e4m3fn).astype(jnp.float32)
    codes = pltpu.bitcast(words, jnp.uint8).astype(jnp.int32)
    return lax.bitcast_convert_type(_float32_bits_of_e5m2(codes), jnp.float32)


def _float32_bits_of_e5m2(codes: Int32[Array, "rows columns"]) -> Int32[Array, "rows columns"]:
    magnitude, sign = codes & 0x7F, (codes & 0x80) << 24
    normal = (magnitude << 21) + ((127 - 15) << 23)
    subnormal = magnitude.astype(jnp.float32) * np.float32(2.0**-16)
    bits = jnp.where(magnitude < 4, lax.bitcast_convert_type(subnormal, jnp.int32), normal)
    special = jnp.where(magnitude == 0x7C, INF, NAN)
    return jnp.where(magnitude >= 0x7C, special, bits) | sign


def kernel(
    words: Any,
    scale: Any,
    *rest: Any,
    element: ElementFormat,
    group: int,
    exact: bool,
) -> None:
    """One tile: words [KT / 4 or KT / 8, NT] to out [KT, NT]."""
    *zero, out = rest
    per_word = tpu_scaled.per_word(element)
    offset = tpu_scaled.offset_of(element)
    for first in range(0, out.shape[0] // (per_word // 4), ROWS):
        own_words = words[first // 4 : (first + ROWS) // 4, :]
        for half in range(per_word // 4):
            row = first + half * (out.shape[0] // 2)
            entry = row // group if group else 0
            numbers = numbers_of(own_words, element, half)
            if zero:
                numbers -= zero[0][0, entry : entry + 1, :].astype(jnp.float32) + offset
            elif offset:
                numbers -= offset
            own = scale[0, entry : entry + 1, :]
            if own.dtype == jnp.uint8:
                own = lax.bitcast_convert_type(own.astype(jnp.int32) << 23, jnp.float32)
            own = own.astype(jnp.float32)
            numbers = times_power_of_two(numbers, own) if exact else numbers * own
            out[row : row + ROWS, :] = numbers.astype(out.dtype)


def tile(weight: ResidentTensor) -> tuple[int, int]:
    """Rows and columns that a step decodes."""
    return weight.option("tile_rows"), min(TILE_COLUMNS, weight.arrays["words"].shape[-1])


def dense(weight: ResidentTensor, dtype: Any, *, interpret: Any) -> Array:
    """The packed matrix, padded to whole tiles."""
    element, words = weight.number_format.element, weight.arrays["words"]
    per_word = tpu_scaled.per_word(element)
    rows, columns = per_word * words.shape[-2], words.shape[-1]
    tile_rows, tile_columns = tile(weight)
    given = [tpu_scaled.column_scales(weight)]
    if "zero" in weight.arrays:
        given.append(weight.array("zero"))
    scalars = stacks.which(weight.index)
    grouped = weight.option("group") > 0
    specs = [
        pl.BlockSpec(
            (1, array.shape[1], tile_columns), lambda j, k, *_: (k if grouped else 0, 0, j)
        )
        for array in given
    ]
    tiles = stacks.spec(weight, (tile_rows // per_word, tile_columns), lambda j, k: (k, j))
    own_kernel = partial(
        kernel,
        element=element,
        group=weight.option("group"),
        exact=bool(weight.option("exact")),
    )
    numbers = pl.pallas_call(
        stacks.body(weight, own_kernel),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(pl.cdiv(columns, tile_columns), rows // tile_rows),
            in_specs=[tiles, *specs],
            out_specs=pl.BlockSpec((tile_rows, tile_columns), lambda j, k, *_: (k, j)),
        ),
        out_shape=jax.ShapeDtypeStruct((rows, columns), dtype),
        name=NAME,
        interpret=interpret,
        compiler_params=compiler_params(),
    )(*scalars, words, *given)
    return _with_rare(numbers, weight, given[0]) if "rare" in weight.arrays else numbers


def _with_rare(numbers: Array, weight: ResidentTensor, scale: Array) -> Array:
    """Puts in the codes that the words lack."""
    lists, group = weight.array("rare"), weight.option("group")
    row, lane, code = tpu_scaled.rare_codes(lists, weight.option("tile_rows"), numbers.shape[0])
    column = lane + jnp.arange(lists.shape[1])[:, None] * LANES
    own = scale.reshape(-1, scale.shape[-1])[row // group if group else 0, column]
    values = weight.number_format.element.decode(code)
    if own.dtype == jnp.uint8:
        values = times_power_of_two(values, FP8_E8M0.decode(own))
    else:
        values = values * own.astype(jnp.float32)
    return numbers.at[row, column].set(values.astype(numbers.dtype), mode="drop")
