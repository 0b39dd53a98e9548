"""FP8, INT8 and INT4 with scales for TPU: codes in the order in which registers take them.

The rows of the packed matrix are summed over. They are padded with zeros to whole tiles of
`tile_rows`, columns to multiples of 128. A group is `group` rows that share a scale in a column;
one group is all rows where scales are per column or per tensor.

    words:  uint32[rows / 4, columns]   codes of eight bits: word row r holds rows 4r .. 4r + 3,
                                        the first in the low byte
            uint32[rows / 8, columns]   of four: byte i of word row r of a tile holds row 4r + i of
                                        the tile's first half (low nibble) and of its second half
    scale:  [row tiles, groups, columns], or [row tiles, groups, column blocks] where blocks are as
            wide as `block`; one row tile, one group where scales are per column. E8M0 codes
            (uint8), or numbers (bfloat16 where the scales are that, else float32)
    zero:   bfloat16[row tiles, groups, columns]   zero points, if there are any; integers
    nan:    bool[1, columns]   columns with a NaN, if there are any
    rare:   int32[row tiles, column tiles of 128, 2, n]   codes of E4M3 that are 0 in the words, if
            there are any: -0, which MXUs of some TPUs take for NaN, and NaN. Place (row in the tile
            << 7 | column in the tile), and code; code 0 fills up
    options: tile_rows, group (0: all rows), block (0: a scale for every column), shift (added to
             E8M0 codes, so that none is 0), exact (whether products with them may be subnormal),
             narrow (whether scales have 16 significant bits at the most)

An integer is stored as what the kernels read, eight bits signed and four bits unsigned: its code,
some bits flipped. Its number is that minus `offset` minus the zero point. Codes survive; scales and
zero points survive as numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped, UInt8, UInt32

from jentropy import formats
from jentropy.formats import WHOLE, ElementFormat, Format, Parameter, Role
from jentropy.formats.dequantizing import spread
from jentropy.formats.encoding import bits_of
from jentropy.pallas_kernels import tiles
from jentropy.pallas_kernels.integers import INTEGERS, is_integer
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed, at_places, padded, sized
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES, ceil_to

from .blocks import FLOATS, NIBBLE, Blocks, holds, per_word

NAME = "tpu_scaled"
RARE_SHARE = 4  # a list of rare codes takes a quarter of the words' bytes at the most
E8M0_NAN = 255
TINY = 24  # E8M0 codes below: products with narrow elements may be subnormal
MAX_ZERO = 256  # bfloat16 holds integers up to here


def shapes(weight: Matrices) -> Packed | None:
    """Arrays without data of numbers without NaN, -0 of E4M3, and scales near the ends of E8M0."""
    blocks = Blocks.of(weight)
    if blocks is None:
        return None
    (rows, columns), stack = weight.matrix, weight.stack
    wide, high = ceil_to(columns, LANES), ceil_to(rows, blocks.tile_rows)
    entries = -(-columns // blocks.wide) if blocks.wide else wide
    dtype = blocks.scale_dtype(weight.number_format)
    arrays = {
        "words": sized(jnp.uint32, *stack, high // per_word(weight.number_format.element), wide),
        "scale": sized(dtype, *stack, *blocks.grid, entries),
    }
    if blocks.zero is not None:
        arrays["zero"] = sized(jnp.bfloat16, *stack, *blocks.grid, wide)
    options = {"tile_rows": blocks.tile_rows, "group": blocks.group, "block": blocks.wide}
    narrow = blocks.scale is None or dtype != np.float32
    return arrays, options | {"shift": 0, "exact": 0, "narrow": int(narrow)}


def pack(weight: Matrices) -> Packed | None:
    """Lays out codes, summed over their rows; None for blocks that tiles do not hold."""
    blocks, planned = Blocks.of(weight), shapes(weight)
    if blocks is None or planned is None:
        return None
    scale, zero, options = blocks.scale, blocks.zero, planned[1]
    element, codes, columns = weight.number_format.element, weight.each, weight.matrix[1]
    arrays: dict[str, Any] = {}
    if element.name == "FP8_E4M3":
        rare, codes = _take_out_rare(codes, blocks.tile_rows)
        if rare.size:
            arrays["rare"] = rare
    arrays["words"] = _pack_codes(codes, element=element, tile_rows=blocks.tile_rows)
    if "rare" in arrays and RARE_SHARE * arrays["rare"].nbytes > arrays["words"].nbytes:
        return None
    nan = jnp.zeros((), bool)
    if element.name in FLOATS:
        nan = _nan_columns(weight.each, element=element)
    grid = partial(_grid, weight=weight, blocks=blocks)
    if scale is None:
        arrays["scale"] = grid(jnp.ones((1, 1), jnp.float32), block=WHOLE)
    elif scale.element.name == "FP8_E8M0":
        powers = weight.codes[scale.name]
        options["shift"] = int((powers == 0).any())
        options["exact"] = int(((powers < TINY) | (powers == E8M0_NAN)).any())
        if options["shift"] and bool((powers == 254).any()):
            return None
        arrays["scale"] = grid(powers)
        nan |= (arrays["scale"] == E8M0_NAN).any(1)[:, None, :columns]
    else:
        numbers = _scales(weight, scale).astype(planned[0]["scale"].dtype)
        options["narrow"] = int(not (bits_of(numbers.astype(jnp.float32)) & 0xFF).any())
        arrays["scale"] = grid(numbers, wide=blocks.wide)
    if zero is not None:
        zeros = zero.element.decode(weight.codes[zero.name])
        if float(jnp.abs(zeros).max()) > MAX_ZERO:
            return None
        arrays["zero"] = grid(zeros.astype(jnp.bfloat16))
    if bool(nan.any()):
        nan = jnp.broadcast_to(nan, (codes.shape[0], 1, columns))
        arrays["nan"] = jnp.pad(nan, ((0, 0), (0, 0), (0, -columns % LANES)))
    return weight.filled(planned, arrays)


@partial(jax.jit, static_argnames=("element", "tile_rows"))
def _pack_codes(
    codes: UInt8[Array, "stack rows columns"], *, element: ElementFormat, tile_rows: int
) -> UInt32[Array, "stack words lanes"]:
    if is_integer(element):
        codes = codes ^ np.uint8(INTEGERS[element.name].flipped)
    codes = jax.vmap(lambda one: padded(one, tile_rows, LANES))(codes).astype(jnp.uint32)
    count, _, columns = codes.shape
    if element.code_bits == NIBBLE:
        halves = codes.reshape(count, -1, 2, tile_rows // 2, columns)
        codes = (halves[:, :, 0] | halves[:, :, 1] << NIBBLE).reshape(count, -1, columns)
    four = codes.reshape(count, -1, 4, columns)
    return sum((four[:, :, i] << (8 * i) for i in range(1, 4)), four[:, :, 0])


def _take_out_rare(
    codes: UInt8[Array, "stack rows columns"], tile_rows: int
) -> tuple[Int32[np.ndarray, "stack steps tiles 2 n"], UInt8[Array, "stack rows columns"]]:
    """Lists of rare codes, see the module, and the others with 0 in their places."""
    kept, marks = _mark_rare(codes)
    count, rows, columns = codes.shape
    index, row, column = np.nonzero(np.unpackbits(np.asarray(marks), axis=-1, count=columns))
    grid = -(-rows // tile_rows), -(-columns // LANES)
    tile = (index * grid[0] + row // tile_rows) * grid[1] + column // LANES
    place = tiles.places(tile)
    lists = np.zeros((count * math.prod(grid), 2, int(place.max(initial=-1)) + 1), np.int32)
    lists[tile, 0, place] = row % tile_rows << 7 | column % LANES
    lists[tile, 1, place] = at_places(codes, index, row, column)
    return lists.reshape(count, *grid, *lists.shape[1:]), kept


@jax.jit
def _mark_rare(codes: UInt8[Array, "*shape"]) -> tuple[Array, Array]:
    rare = ((codes & 0x7F) == 0x7F) | (codes == 0x80)
    return jnp.where(rare, np.uint8(0), codes), jnp.packbits(rare, axis=-1)


def rare_codes(
    lists: Int[Array, "steps tiles 2 n"], tile_rows: int, rows: int
) -> tuple[Array, Array, UInt8[Array, "steps tiles n"]]:
    """Rows of the packed matrix (`rows` where there is none), columns in their tile, and codes."""
    place, code = lists[:, :, 0], lists[:, :, 1]
    row = (place >> 7) + jnp.arange(lists.shape[0])[:, None, None] * tile_rows
    return jnp.where(code == 0, rows, row), place & (LANES - 1), code.astype(jnp.uint8)


@partial(jax.jit, static_argnames="element")
def _nan_columns(codes: Array, *, element: ElementFormat) -> Bool[Array, "stack 1 columns"]:
    return jnp.isnan(element.decode(codes)).any(1, keepdims=True)


def _scales(weight: Matrices, scale: Parameter) -> Float[Array, "*stack groups blocks"]:
    """A scale times the scales of its own, float32."""
    numbers = scale.element.decode(weight.codes[scale.name])
    for factor in (p for p in weight.number_format.parameters if p.of == scale.name):
        values = factor.element.decode(weight.codes[factor.name])
        numbers = numbers * spread(values, factor, weight.codes["code"].shape, scale, None)
    return numbers


def _grid(
    numbers: Array, *, weight: Matrices, blocks: Blocks, block: int | None = None, wide: int = 0
) -> Shaped[Array, "stack groups entries"]:
    """A parameter with an entry for each group and each column, or block of `wide` columns."""
    block, columns = blocks.block if block is None else block, weight.matrix[1]
    numbers = numbers.reshape(-1, *numbers.shape[-2:])
    if block == WHOLE:
        numbers = jnp.broadcast_to(numbers, (*numbers.shape[:2], columns))
    elif not wide and block > 1:
        numbers = jnp.repeat(numbers, block, axis=-1)[..., :columns]
    entries = numbers.shape[-1] if wide else ceil_to(columns, LANES)
    groups = math.prod(blocks.grid)
    missing = ((0, 0), (0, groups - numbers.shape[1]), (0, entries - numbers.shape[2]))
    return jnp.broadcast_to(jnp.pad(numbers, missing), (weight.each.shape[0], groups, entries))


def column_scales(weight: ResidentTensor) -> Shaped[Array, "steps groups columns"]:
    """Scales with an entry for every column."""
    scale, block = weight.array("scale"), weight.option("block")
    columns = weight.arrays["words"].shape[-1]
    return jnp.repeat(scale, block, axis=-1)[..., :columns] if block else scale


def _unpack_codes(words: Array, element: ElementFormat, tile_rows: int) -> UInt8[Array, "rows n"]:
    four = jnp.stack([(words >> (8 * i)).astype(jnp.uint8) for i in range(4)], axis=1)
    codes = four.reshape(-1, words.shape[-1])
    if element.code_bits == NIBBLE:
        halves = codes.reshape(-1, tile_rows // 2, words.shape[-1])
        codes = jnp.stack([halves & 0xF, halves >> NIBBLE], axis=1).reshape(-1, words.shape[-1])
    if is_integer(element):
        codes = codes ^ np.uint8(INTEGERS[element.name].flipped)
    return codes


def take(weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any) -> Shaped[Array, "ids rows"]:
    """Columns of the packed matrix, in plain JAX."""
    arrays, tile_rows = weight.arrays, weight.option("tile_rows")
    element, group, block = (
        weight.number_format.element,
        weight.option("group"),
        weight.option("block"),
    )
    code = _unpack_codes(arrays["words"][:, ids], element, tile_rows)
    if "rare" in arrays:
        lists = arrays["rare"][:, ids // LANES]
        row, lane, rare = rare_codes(lists, tile_rows, code.shape[0])
        row = jnp.where(lane == (ids % LANES)[:, None], row, code.shape[0])
        at = jnp.broadcast_to(jnp.arange(ids.size)[:, None], row.shape)
        code = code.at[row, at].set(rare, mode="drop")
    scale = arrays["scale"][..., ids // block if block else ids].reshape(-1, ids.size)
    powers = scale.dtype == jnp.uint8
    codes = {"code": code, "scale": scale if powers else bits_of(scale.astype(jnp.float32))}
    kind = formats.FP8_E8M0 if powers else formats.FP32
    parameters = [Parameter(name="scale", field="scale", element=kind, block=(group, 1))]
    if "zero" in arrays:
        zeros = arrays["zero"][..., ids].reshape(-1, ids.size)
        codes["zero"] = bits_of(zeros.astype(jnp.float32))
        zero = replace(parameters[0], name="zero", element=formats.FP32, role=Role.ZERO_POINT)
        parameters.append(zero)
    number_format = Format(name=NAME, element=element, parameters=tuple(parameters))
    return formats.dequantize(number_format, codes, dtype).T


def extent(weight: ResidentTensor) -> Extent:
    """Rows and columns, padded to tiles."""
    words = weight.arrays["words"]
    rows = per_word(weight.number_format.element) * words.shape[-2]
    return (rows, words.shape[-1]), (weight.option("tile_rows"), LANES)


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded, in plain JAX: what kernels are held to."""
    return take(weight, jnp.arange(weight.arrays["words"].shape[-1]), dtype).T


LAYOUT = Layout(
    name=NAME,
    backend="tpu",
    reduces=-2,
    stacked=("words", 2),
    columns={"words": -1, "scale": -1, "zero": -1, "nan": -1, "rare": -3},
    rows={"words": -2, "scale": -3, "zero": -3, "rare": -4},
    holds=holds,
    shapes=shapes,
    pack=pack,
    extent=extent,
    decode=decode,
    take=take,
    has_kernels=True,
)
