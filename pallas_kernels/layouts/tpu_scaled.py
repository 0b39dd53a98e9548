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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8, UInt32

from jentropy import formats
from jentropy.formats import WHOLE, ElementFormat, Format, Parameter, Role
from jentropy.formats.dequantizing import spread
from jentropy.formats.encoding import bits_of
from jentropy.pallas_kernels.resident import ResidentTensor

from . import tiles
from .matrix import Matrices, Packed, over_stack, padded, sized
from .tiles import LANES, ceil_to, choose_tile

NAME, BACKEND = "tpu_scaled", "tpu"
REDUCES = -2
STACKED = ("words", 2)
# Axes that columns and rows of the packed matrix run along, from the last.
COLUMNS = {"words": -1, "scale": -1, "zero": -1, "nan": -1, "rare": -3}
ROWS = {"words": -2, "scale": -3, "zero": -3, "rare": -4}
TILE_ROWS = (2048, 1536, 2560, 1024, 512)
TILE_COLUMNS = 2048  # at the most, and a multiple of blocks of columns
GROUPS = tuple(32 << i for i in range(7))  # rows of a group
FLOATS = {"FP8_E4M3", "FP8_E5M2"}


@dataclass(frozen=True, slots=True)
class Stored:
    """How an integer is stored."""

    flipped: int  # bits of its code
    offset: int


INTEGERS = {
    "INT8": Stored(0, 0),
    "INT8_EXCESS128": Stored(0x80, 0),
    "UINT8": Stored(0x80, -128),
    "INT4": Stored(8, 8),
    "INT4_EXCESS8": Stored(0, 8),
    "UINT4": Stored(0, 0),
}
NIBBLE = 4
RARE_SHARE = 4  # a list of rare codes takes a quarter of the words' bytes at the most
E8M0_NAN = 255
TINY = 24  # E8M0 codes below: products with narrow elements may be subnormal
MAX_ZERO = 256  # bfloat16 holds integers up to here


def holds(number_format: Format) -> bool:
    """An element of eight or four bits, at most one scale with factors, and one zero point."""
    roots = [p for p in number_format.parameters if p.of is None]
    return (
        number_format.element.name in (FLOATS | INTEGERS.keys())
        and sorted(p.role.name for p in roots)
        in ([], ["SCALE"], *([["SCALE", "ZERO_POINT"]] * is_integer(number_format.element)))
        and all(p.role is Role.SCALE for p in number_format.parameters if p.of is not None)
        and all(p.of in (None, "scale", "tensor_scale") for p in number_format.parameters)
    )


def is_integer(element: ElementFormat) -> bool:
    """Whether codes are integers with an excess."""
    return element.name in INTEGERS


def offset_of(element: ElementFormat) -> int:
    """What a stored integer is above its number, but for the zero point."""
    return INTEGERS[element.name].offset if is_integer(element) else 0


def per_word(element: ElementFormat) -> int:
    """Codes of a word."""
    return 32 // element.code_bits


def extent(weight: ResidentTensor) -> tuple[int, int]:
    """Rows and columns."""
    words = weight.arrays["words"]
    rows = per_word(weight.number_format.element) * words.shape[-2]
    return tiles.extent(weight, rows, words.shape[-1], weight.option("tile_rows"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How a weight's blocks lie in tiles.

    Attributes:
      scale, zero: its parameters, None where it has none.
      group, block: rows and columns that share a scale; 0: all rows, or all columns.
      tile_rows: of a tile.
      grid: steps along the rows, and groups of a step.
    """

    scale: Parameter | None
    zero: Parameter | None
    group: int
    block: int
    tile_rows: int
    grid: tuple[int, int]

    @classmethod
    def of(cls, weight: Matrices) -> Blocks | None:
        """None for blocks that tiles do not hold."""
        if formats.GROUP_INDEX in weight.codes:
            return None
        number_format, (rows, _) = weight.number_format, weight.matrix
        roots = {p.role: p for p in number_format.parameters if p.of is None}
        scale, zero = roots.get(Role.SCALE), roots.get(Role.ZERO_POINT)
        blocks = (WHOLE, WHOLE) if scale is None else scale.blocks(2)
        group, block = (0 if b >= n else b for b, n in zip(blocks, weight.matrix, strict=True))
        if (group and group not in GROUPS) or (zero and zero.blocks(2) != blocks):
            return None
        if scale is not None and scale.element.name == "FP8_E8M0" and not group:
            return None
        if zero is not None and zero.element.name not in INTEGERS:
            return None
        halves = 2 if number_format.element.code_bits == NIBBLE else 1
        tile_rows = choose_tile(
            rows, [t for t in TILE_ROWS if not group or t // halves % group == 0]
        )
        groups = ceil_to(rows, tile_rows) // group if group else 1
        steps = groups * group // tile_rows if group else 1
        grid = steps, groups // steps
        return cls(scale=scale, zero=zero, group=group, block=block, tile_rows=tile_rows, grid=grid)

    @property
    def wide(self) -> int:
        """Columns that share a stored scale; 0: every column has its own."""
        powers = self.scale is not None and self.scale.element.name == "FP8_E8M0"
        fits = self.block and self.block % LANES == 0 and TILE_COLUMNS % self.block == 0
        return self.block if fits and not powers else 0

    def options(self) -> dict[str, int]:
        """Those of the layout, as of numbers that need nothing of their own."""
        wide = self.wide if self.scale is not None else 0
        own = {"tile_rows": self.tile_rows, "group": self.group, "block": wide}
        return own | {"shift": 0, "exact": 0, "narrow": 1}


def pack(weight: Matrices) -> Packed | None:
    """Lays out codes, summed over their rows; None for blocks that tiles do not hold."""
    number_format, (rows, columns) = weight.number_format, weight.matrix
    blocks = Blocks.of(weight)
    if blocks is None:
        return None
    scale, zero, block = blocks.scale, blocks.zero, blocks.block
    tile_rows = blocks.tile_rows
    element, stacked = number_format.element, math.prod(weight.stack)
    codes = weight.codes["code"].reshape(stacked, rows, columns)
    rare = None
    if element.name == "FP8_E4M3":
        rare, codes = _take_out_rare(codes, tile_rows)
    arrays = {"words": _pack_codes(codes, element=element, tile_rows=tile_rows)}
    if rare is not None:
        if RARE_SHARE * rare.nbytes > arrays["words"].nbytes:
            return None
        arrays["rare"] = jnp.asarray(rare)
    codes = weight.codes["code"].reshape(stacked, rows, columns)
    nan = _nan_columns(codes, element=element) if element.name in FLOATS else jnp.zeros((), bool)
    options = blocks.options()
    grid = partial(_grid, stacked=stacked, grid=blocks.grid, columns=columns)
    if scale is None:
        arrays["scale"] = grid(jnp.ones((1, 1), jnp.float32), WHOLE)
    elif scale.element.name == "FP8_E8M0":
        powers = weight.codes[scale.name]
        if bool((powers == 0).any() & (powers == 254).any()):
            return None
        options["shift"] = int((powers == 0).any())
        options["exact"] = int(((powers < TINY) | (powers == E8M0_NAN)).any())
        arrays["scale"] = grid(powers, block)
        nan |= (arrays["scale"] == E8M0_NAN).any((1, 2))[:, None, :columns]
    else:
        numbers = _scales(weight, scale)
        arrays["scale"] = grid(numbers, block, wide=blocks.wide)
        options["narrow"] = int(not (bits_of(numbers.astype(jnp.float32)) & 0xFF).any())
    if zero is not None:
        zeros = zero.element.decode(weight.codes[zero.name])
        if float(jnp.abs(zeros).max()) > MAX_ZERO:
            return None
        arrays["zero"] = grid(zeros.astype(jnp.bfloat16), block)
    if bool(nan.any()):
        nan = jnp.broadcast_to(nan, (stacked, 1, columns))
        arrays["nan"] = jnp.pad(nan, ((0, 0), (0, 0), (0, -columns % LANES)))
    return {
        name: array.reshape(*weight.stack, *array.shape[1:]) for name, array in arrays.items()
    }, options


def abstract(weight: Matrices) -> Packed | None:
    """What `pack` makes of numbers without NaN, -0 of E4M3, and scales near the ends of E8M0."""
    number_format, (rows, columns) = weight.number_format, weight.matrix
    blocks = Blocks.of(weight)
    if blocks is None:
        return None
    wide, high = ceil_to(columns, LANES), ceil_to(rows, blocks.tile_rows)
    words = high // per_word(number_format.element)
    entries = -(-columns // blocks.wide) if blocks.options()["block"] else wide
    scale, factors = blocks.scale, [p for p in number_format.parameters if p.of is not None]
    kind: np.dtype[Any] = np.dtype(np.float32)
    narrow = scale is None
    if scale is not None and scale.element.name == "FP8_E8M0":
        kind, narrow = np.dtype(np.uint8), True
    elif scale is not None and scale.element.name == "BF16" and not factors:
        kind, narrow = np.dtype(jnp.bfloat16), True
    arrays = {
        "words": sized(jnp.uint32, *weight.stack, words, wide),
        "scale": sized(kind, *weight.stack, *blocks.grid, entries),
    }
    if blocks.zero is not None:
        arrays["zero"] = sized(jnp.bfloat16, *weight.stack, *blocks.grid, wide)
    return arrays, blocks.options() | {"narrow": int(narrow)}


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
    octets = codes.reshape(count, -1, 4, columns)
    return sum((octets[:, :, i] << (8 * i) for i in range(1, 4)), octets[:, :, 0])


def _take_out_rare(
    codes: UInt8[Array, "stack rows columns"], tile_rows: int
) -> tuple[np.ndarray | None, UInt8[Array, "stack rows columns"]]:
    """Lists of rare codes, see the module, and the others with 0 in their places."""
    kept, found = _mark_rare(codes)
    count, rows, columns = codes.shape
    index, row, column = np.nonzero(np.unpackbits(np.asarray(found), axis=-1, count=columns))
    if not row.size:
        return None, codes
    grid = -(-rows // tile_rows), -(-columns // LANES)
    tile = (index * grid[0] + row // tile_rows) * grid[1] + column // LANES
    place = tiles.places(tile)
    lists = np.zeros((count * math.prod(grid), 2, int(place.max()) + 1), np.int32)
    lists[tile, 0, place] = row % tile_rows << 7 | column % LANES
    lists[tile, 1, place] = np.asarray(codes[index, row, column])
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
    """A scale times the scales of its own: bfloat16 if that is all, else float32."""
    numbers = scale.element.decode(weight.codes[scale.name])
    factors = [p for p in weight.number_format.parameters if p.of == scale.name]
    for factor in factors:
        own = factor.element.decode(weight.codes[factor.name])
        numbers = numbers * spread(own, factor, weight.codes["code"].shape, scale, None)
    exact = scale.element.name == "BF16" and not factors
    return numbers.astype(jnp.bfloat16 if exact else jnp.float32)


def _grid(
    numbers: Array,
    block: int,
    *,
    stacked: int,
    grid: tuple[int, int],
    columns: int,
    wide: int = 0,
) -> Shaped[Array, "stack steps groups entries"]:
    """A parameter with an entry for each group and each column, or block of `wide` columns."""
    numbers = numbers.reshape(-1, *numbers.shape[-2:])
    if block == WHOLE:
        numbers = jnp.broadcast_to(numbers, (*numbers.shape[:2], columns))
    elif not wide and block > 1:
        numbers = jnp.repeat(numbers, block, axis=-1)[..., :columns]
    entries = numbers.shape[-1] if wide else ceil_to(columns, LANES)
    groups = math.prod(grid)
    missing = ((0, 0), (0, groups - numbers.shape[1]), (0, entries - numbers.shape[2]))
    numbers = jnp.broadcast_to(jnp.pad(numbers, missing), (stacked, groups, entries))
    return numbers.reshape(stacked, *grid, entries)


def column_scales(weight: ResidentTensor) -> Shaped[Array, "steps groups columns"]:
    """Scales with an entry for every column."""
    scale, block = weight.array("scale"), weight.option("block")
    columns = weight.arrays["words"].shape[-1]
    return jnp.repeat(scale, block, axis=-1)[..., :columns] if block else scale


def _unpack_codes(words: Array, element: ElementFormat, tile_rows: int) -> UInt8[Array, "rows n"]:
    octets = jnp.stack([(words >> (8 * i)).astype(jnp.uint8) for i in range(4)], axis=1)
    codes = octets.reshape(-1, words.shape[-1])
    if element.code_bits == NIBBLE:
        halves = codes.reshape(-1, tile_rows // 2, words.shape[-1])
        codes = jnp.stack([halves & 0xF, halves >> NIBBLE], axis=1).reshape(-1, words.shape[-1])
    if is_integer(element):
        codes = codes ^ np.uint8(INTEGERS[element.name].flipped)
    return codes


def _numbers(
    weight: ResidentTensor, arrays: Mapping[str, Array], columns: Array | None, dtype: Any
) -> Shaped[Array, "rows columns"]:
    """The packed matrix, or some of its columns, in plain JAX."""
    element, group = weight.number_format.element, weight.option("group")
    words, block = arrays["words"], weight.option("block")
    index = jnp.arange(words.shape[-1]) if columns is None else columns
    scale = arrays["scale"]
    tile_rows = weight.option("tile_rows")
    code = _unpack_codes(words[:, index], element, tile_rows)
    if "rare" in arrays:
        own = arrays["rare"][:, index // LANES]
        row, lane, rare = rare_codes(own, tile_rows, code.shape[0])
        row = jnp.where(lane == (index % LANES)[None, :, None], row, code.shape[0])
        at = jnp.broadcast_to(jnp.arange(index.size)[:, None], row.shape)
        code = code.at[row, at].set(rare, mode="drop")
    codes = {"code": code}
    scale = scale[..., index // block if block else index]
    powers = scale.dtype == jnp.uint8
    scale = scale.reshape(-1, index.size)
    codes["scale"] = scale if powers else bits_of(scale.astype(jnp.float32))
    kind = formats.FP8_E8M0 if powers else formats.FP32
    parameters = [formats.Parameter(name="scale", field="scale", element=kind, block=(group, 1))]
    if "zero" in arrays:
        zeros = arrays["zero"][..., index].reshape(-1, index.size)
        codes["zero"] = bits_of(zeros.astype(jnp.float32))
        zero = replace(parameters[0], name="zero", element=formats.FP32, role=Role.ZERO_POINT)
        parameters.append(zero)
    number_format = Format(name=NAME, element=element, parameters=tuple(parameters))
    return formats.dequantize(number_format, codes, dtype)


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "*shape"]:
    """The dense weight, in plain JAX: what the kernels are held to."""
    rows, columns = extent(weight)

    def one(matrix: ResidentTensor) -> Array:
        numbers = _numbers(weight, matrix.arrays, None, dtype)[:rows, :columns]
        return numbers.T if weight.turned else numbers

    return over_stack(weight, one)


@partial(jax.jit, static_argnames="dtype")
def take_rows(
    weight: ResidentTensor, ids: Int[Array, "*batch"], dtype: Any
) -> Shaped[Array, "*batch columns"]:
    """Rows of a two-dimensional weight; of a turned one only those are decoded."""
    rows, columns = weight.matrix
    flat = jnp.clip(ids.reshape(-1), 0, rows - 1)
    if weight.turned:
        taken = _numbers(weight, weight.arrays, flat, dtype)[:columns].T
    else:
        taken = decode(weight, dtype)[flat]
    return taken.reshape(*ids.shape, columns)
