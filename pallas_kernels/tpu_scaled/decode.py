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
from jaxtyping import Array, Float32, Int32, Shaped, UInt32

from jentropy.formats import FP8_E8M0, ElementFormat
from jentropy.formats.dequantizing import times_power_of_two
from jentropy.pallas_kernels.integers import is_integer, offset_of
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES
from jentropy.pallas_kernels.tpu.calls import call, spec

from .blocks import NIBBLE, per_word
from .layout import column_scales, rare_codes
from .plan import decode_tile

ROWS = 32  # decoded together: what fits in registers; no group is smaller
INF, NAN = 0x7F800000, 0x7FC00000


def numbers_of(
    words: UInt32[Array, "words columns"], element: ElementFormat, half: int
) -> Float32[Array, "rows columns"]:
    """Numbers of four rows a word, exactly; integers have their offset.

    Args:
      half: which nibbles, of codes of four bits.
    """
    if element.code_bits == NIBBLE:
        words = (words >> (NIBBLE * half)) & np.uint32(0x0F0F0F0F)
    if is_integer(element):
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
    halves, offset = per_word(element) // 4, offset_of(element)
    for first in range(0, out.shape[0] // halves, ROWS):
        packed = words[first // 4 : (first + ROWS) // 4, :]
        for half in range(halves):
            row = first + half * (out.shape[0] // 2)
            entry = row // group if group else 0
            numbers = numbers_of(packed, element, half)
            if zero:
                numbers -= zero[0][0, entry : entry + 1, :].astype(jnp.float32) + offset
            elif offset:
                numbers -= offset
            factor = scale[0, entry : entry + 1, :]
            if factor.dtype == jnp.uint8:
                factor = lax.bitcast_convert_type(factor.astype(jnp.int32) << 23, jnp.float32)
            factor = factor.astype(jnp.float32)
            numbers = times_power_of_two(numbers, factor) if exact else numbers * factor
            out[row : row + ROWS, :] = numbers.astype(out.dtype)


def decode(
    weight: ResidentTensor, dtype: Any, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded to whole tiles."""
    element, words = weight.number_format.element, weight.arrays["words"]
    rows, columns = per_word(element) * words.shape[-2], words.shape[-1]
    tile_rows, tile_columns = decode_tile(weight)
    parameters = [column_scales(weight)]
    if "zero" in weight.arrays:
        parameters.append(weight.array("zero"))
    group = weight.option("group")
    specs = [
        pl.BlockSpec((1, array.shape[1], tile_columns), lambda j, k, *_: (k if group else 0, 0, j))
        for array in parameters
    ]
    tile = tile_rows // per_word(element), tile_columns
    numbers = call(
        partial(kernel, element=element, group=group, exact=bool(weight.option("exact"))),
        weight,
        *(words, *parameters),
        name="decode_scaled",
        grid=(pl.cdiv(columns, tile_columns), rows // tile_rows),
        in_specs=[spec(weight, tile, lambda j, k: (k, j)), *specs],
        out_spec=pl.BlockSpec((tile_rows, tile_columns), lambda j, k, *_: (k, j)),
        out=jax.ShapeDtypeStruct((rows, columns), dtype),
        interpret=interpret,
    )
    return _with_rare(numbers, weight, parameters[0]) if "rare" in weight.arrays else numbers


def _with_rare(numbers: Array, weight: ResidentTensor, scale: Array) -> Array:
    """Puts in the codes that the words lack."""
    lists, group = weight.array("rare"), weight.option("group")
    row, lane, code = rare_codes(lists, weight.option("tile_rows"), numbers.shape[0])
    column = lane + jnp.arange(lists.shape[1])[:, None] * LANES
    factor = scale.reshape(-1, scale.shape[-1])[row // group if group else 0, column]
    values = weight.number_format.element.decode(code)
    if factor.dtype == jnp.uint8:
        values = times_power_of_two(values, FP8_E8M0.decode(factor))
    else:
        values = values * factor.astype(jnp.float32)
    return numbers.at[row, column].set(values.astype(numbers.dtype), mode="drop")
