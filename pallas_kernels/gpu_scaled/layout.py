"""FP8, FP4, INT8 and INT4 with scales for Hopper GPUs, in the order in which WGMMA takes weights.

Rows are outputs, columns are summed over; both are padded with zeros to multiples of 128. A block
is 64 by 64 codes, see `hopper.fragments`; how codes lie in its words says `elements`.

    words: uint32[row blocks, column blocks, 8 or 4, 128]   rows 4 w to 4 w + 3 hold word w of every
           place: a thread reads 16 bytes at a time
    row:   float32[rows]   what the sum over all columns is multiplied by: the scale where that is
           the row's; 2^shift where E8M0 scales are stored 2^shift too small; 2^20 times the
           tensor's scale with E4M3 scales
    scale: where there are groups of columns, by their kind (see `blocks.Kind`)
           numbers     bfloat16 or float32[row blocks, groups, 64]; float32[row blocks, groups, 16],
                       all equal, where 64 rows share them
           powers      uint32[row blocks, columns / 128, 64]   exponents as BF16 has them, of what
                       undoes the element's own power too: a byte each of four groups of 32
           sixteenths  uint32[row blocks, columns / 64, 64]   E4M3 as five bits of exponent and
                       three of mantissa, from 2^-9 on: a byte each of four groups of 16
    zero:  uint8[row blocks, groups, 64]   zero points of groups, if there are any, plus what a
           stored integer is above its number
    row_zero: bfloat16[rows]   the same of rows, times -2^-unit of the element
    options: group (columns of a group; 0: all)

An integer is stored as what the kernels read, see `integers`. Numbers survive, and codes but for
those of numbers that a scale of zero makes zero. NaN, Inf and scales that cannot be stored so
exactly have no place here: such a weight rests in the reference layout.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped, UInt8, UInt16, UInt32

from jentropy import formats
from jentropy.formats import ElementFormat, Format, Parameter, Role
from jentropy.formats.encoding import bits_of
from jentropy.pallas_kernels.hopper import fragments
from jentropy.pallas_kernels.integers import INTEGERS, offset_of
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed, padded, sized
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import ceil_to

from . import scales
from .blocks import TILE, Blocks, Kind, holds
from .elements import ELEMENTS

NAME = "gpu_scaled"


def shapes(weight: Matrices) -> Packed | None:
    """Arrays without data of numbers that can be held."""
    blocks = Blocks.of(weight)
    if blocks is None:
        return None
    number_format, stack = weight.number_format, weight.stack
    high, wide = (ceil_to(size, TILE) for size in weight.matrix)
    grid = high // fragments.ROWS, wide // fragments.BLOCK
    words = ELEMENTS[number_format.element.name].words * fragments.REGISTERS
    arrays = {"words": sized(jnp.uint32, *stack, *grid, words, fragments.THREADS)}
    if blocks.kind is not Kind.NUMBERS:
        arrays["row"] = sized(jnp.float32, *stack, high)
    if blocks.kind is not Kind.ROW:
        shape, dtype = blocks.scale_of(high, wide, number_format)
        arrays["scale"] = sized(dtype, *stack, *shape)
    if blocks.zero is not None:
        if blocks.kind is Kind.ROW:
            arrays["row_zero"] = sized(jnp.bfloat16, *stack, high)
        else:
            groups = wide // blocks.group
            arrays["zero"] = sized(jnp.uint8, *stack, grid[0], groups, fragments.ROWS)
    return arrays, {"group": blocks.group}


def pack(weight: Matrices) -> Packed | None:
    """Lays out codes; None where these cannot be held."""
    blocks, planned = Blocks.of(weight), shapes(weight)
    if blocks is None or planned is None:
        return None
    element, codes = weight.number_format.element, weight.each
    if element.bias is not None and not bool(_all_finite(codes, element=element)):
        return None
    arrays: dict[str, Any] = {}
    if blocks.kind is Kind.POWERS:
        held = scales.powers(weight, blocks)
    elif blocks.kind is Kind.SIXTEENTHS:
        held = scales.sixteenths(weight, blocks)
    else:
        held = scales.numbers(weight, blocks)
    if held is None:
        return None
    if blocks.zero is not None:
        zeros = scales.zeros(weight, blocks)
        if zeros is None:
            return None
        arrays["row_zero" if blocks.kind is Kind.ROW else "zero"] = zeros
    codes = held.pop("codes", codes)
    arrays |= held
    arrays["words"] = _pack_words(codes, element=element)
    return weight.filled(planned, arrays)


@partial(jax.jit, static_argnames="element")
def _all_finite(codes: UInt8[Array, "*shape"], *, element: ElementFormat) -> Array:
    return jnp.isfinite(element.decode(codes)).all()


@partial(jax.jit, static_argnames="element")
def _pack_words(
    codes: UInt8[Array, "stack rows columns"], *, element: ElementFormat
) -> UInt32[Array, "stack row_blocks column_blocks words 128"]:
    def one(codes: Array) -> Array:
        if element.name in INTEGERS:
            codes = codes ^ np.uint8(INTEGERS[element.name].flipped)
        pairs = fragments.pairs(fragments.arrange(padded(codes, TILE, TILE)))
        words = ELEMENTS[element.name].pack([pairs[:, :, i] for i in range(4)])
        made = jnp.stack(words, axis=2)
        return made.reshape(*made.shape[:2], -1, fragments.THREADS)

    return jax.vmap(one)(codes)


def _from_words(words: UInt32[Array, "rows words"]) -> UInt8[Array, "rows groups"]:
    four = [words >> 8 * i & 0xFF for i in range(4)]
    return jnp.stack(four, axis=-1).reshape(words.shape[0], -1).astype(jnp.uint8)


def kind_of(weight: ResidentTensor) -> Kind:
    """How its scales reach the weights."""
    if "scale" not in weight.arrays:
        return Kind.ROW
    if weight.arrays["scale"].dtype != jnp.uint32:
        return Kind.NUMBERS
    return Kind.POWERS if weight.option("group") == 32 else Kind.SIXTEENTHS


def extent(weight: ResidentTensor) -> Extent:
    """Rows and columns, padded to tiles."""
    high, wide = weight.arrays["words"].shape[-4:-2]
    return (fragments.ROWS * high, fragments.BLOCK * wide), (TILE, TILE)


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded, in plain JAX: what kernels are held to."""
    element = ELEMENTS[weight.number_format.element.name]
    words = weight.arrays["words"]
    planes = words.reshape(*words.shape[:2], element.words, fragments.PLACES)
    pairs = element.codes([planes[:, :, i] for i in range(element.words)])
    codes = fragments.restore(fragments.halves(jnp.stack(pairs, axis=2)))
    return _dequantized(weight, codes, jnp.arange(codes.shape[0]), dtype)


def take(
    weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any
) -> Shaped[Array, "ids columns"]:
    """Rows of the packed matrix."""
    element = ELEMENTS[weight.number_format.element.name]
    words = weight.arrays["words"]
    planes = words.reshape(*words.shape[:2], element.words, fragments.PLACES)
    places = jnp.asarray(fragments.PLACES_OF_ROWS)[ids % fragments.ROWS]
    planes = planes[(ids // fragments.ROWS)[:, None], :, :, places]  # row, place, block, word
    pairs = element.codes([planes[..., i] for i in range(element.words)])
    codes = fragments.halves(jnp.stack(pairs, axis=3).transpose(0, 2, 3, 1))
    return _dequantized(weight, codes.reshape(ids.size, -1), ids, dtype)


def _dequantized(
    weight: ResidentTensor, codes: UInt16[Array, "ids columns"], ids: Array, dtype: Any
) -> Array:
    """Numbers of stored codes of some rows."""
    arrays, element, kind = weight.arrays, weight.number_format.element, kind_of(weight)
    stored = codes.astype(jnp.uint8)
    if element.name in INTEGERS:
        stored = stored ^ np.uint8(INTEGERS[element.name].flipped)
    block, inside = ids // fragments.ROWS, ids % fragments.ROWS
    group = weight.option("group")

    def entries(name: str) -> Array:
        array = arrays[name]
        if array.ndim == 1:
            return array[ids][:, None]
        shared = array.shape[-1] != fragments.ROWS
        return array[block, :, jnp.zeros_like(inside) if shared else inside]

    number: ElementFormat = formats.FP32
    if kind is Kind.POWERS:
        shift = (bits_of(arrays["row"][ids]) >> 23).astype(jnp.int32)[:, None] - scales.BIAS
        field = _from_words(entries("scale")).astype(jnp.int32)
        scale: Array = (field - ELEMENTS[element.name].power + shift).astype(jnp.uint8)
        number = formats.FP8_E8M0
    elif kind is Kind.SIXTEENTHS:
        short = _from_words(entries("scale")).astype(jnp.uint16)
        exact = jax.lax.bitcast_convert_type(
            (short << 4) + np.uint16(scales.EXACT_PLACE), jnp.bfloat16
        )
        row = arrays["row"][ids][:, None] * np.float32(2.0**-scales.SIXTEENTHS_POWER)
        scale = bits_of(exact.astype(jnp.float32) * row)
    else:
        scale = bits_of(entries("row" if kind is Kind.ROW else "scale").astype(jnp.float32))
    parameters = [Parameter(name="scale", field="scale", element=number, block=(1, group))]
    held = {"code": stored, "scale": scale}
    if zeros := {"zero", "row_zero"} & arrays.keys():
        zero = entries(*zeros).astype(jnp.float32)
        if "row_zero" in zeros:
            zero *= np.float32(-(2.0 ** ELEMENTS[element.name].unit))
        zero -= np.float32(offset_of(element))
        held["zero"] = bits_of(zero)
        parameters.append(
            Parameter(
                name="zero",
                field="zero_point",
                element=formats.FP32,
                block=(1, group),
                role=Role.ZERO_POINT,
            )
        )
    number_format = Format(name=NAME, element=element, parameters=tuple(parameters))
    return formats.dequantize(number_format, held, dtype)


LAYOUT = Layout(
    name=NAME,
    backend="gpu",
    reduces=-1,
    stacked=("words", 4),
    columns={"words": -3, "scale": -2, "zero": -2},
    rows={"words": -4, "row": -1, "row_zero": -1, "scale": -3, "zero": -3},
    holds=holds,
    shapes=shapes,
    pack=pack,
    extent=extent,
    decode=decode,
    take=take,
    has_kernels=True,
)
