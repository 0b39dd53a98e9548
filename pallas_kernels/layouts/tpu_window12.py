"""BF16 for TPU: window12 in the order in which a tile unpacks to rows of bfloat16.

The rows of the packed matrix are summed over. They are padded with zeros to whole tiles of
`tile_rows`, columns to multiples of 128. Rows of a tile are in four quarters: word w[q] of word
row r holds rows 2r (low half) and 2r + 1 of quarter q, three words carry the fourth, so that a
`bitcast` of an unpacked word is two rows of bfloat16.

    words:   uint32[3, rows / 8, columns]
    top:     uint8[1, columns]      top of each column's window, so that columns of small weights
                                    have no more escapes than others
    counts:  int32[column tiles, row tiles]   escapes that each tile has
    escapes: int32[column tiles, row tiles, rows, 128]   padded to the most of any tile
             four chunks of 128 to every eight rows: where, then both codes of its pair
    special: int32[column tiles, row tiles, 3, n]   row and column in the tile, and code, of every
             NaN and Inf, if there are any; they stand among the escapes too. Code 0 fills up
    options: tile_rows, tile_columns, shift (the power of two that x is multiplied by), inline
             (chunks that most tiles have, if they are few)

A pair is a word of uint32[tile_rows / 2, tile_columns], two rows of a tile. Where an escape is:

    bits 22 and up  pair row >> 3
    bits 19 to 21   column >> 7; from bit 16 on it is a row of all registers of a tile under each
                    other, which is where kernels store it
    bit 11          the escape is the upper row of its pair
    bit 10          there is no escape: these, of code 0, fill lists up
    bits 0 to 9     its place in the register: (pair row & 7) << 7 | column & 127

Every code survives.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped, UInt16

from jentropy.codecs import window12
from jentropy.formats import Format
from jentropy.pallas_kernels.resident import ResidentTensor

from . import tiles
from .matrix import Matrices, Packed, escapes_of, over_stack, padded, sized
from .tiles import LANES, ceil_to, choose_tile

NAME, BACKEND = "tpu_window12", "tpu"
REDUCES = -2
STACKED = ("words", 3)
# Axes that columns and rows of the packed matrix run along, from the last.
COLUMNS = {"words": -1, "top": -1, "counts": -2, "escapes": -4, "special": -4}
ROWS = {"words": -2, "counts": -1, "escapes": -3, "special": -3}
TILE_ROWS, TILE_COLUMNS = (2048, 1536, 2560, 1024, 512), 1024
CHUNK = 128  # escapes that are patched together
MOST_INLINE = 8  # chunks; each makes the program longer
# Of where an escape is.
PAIR_BLOCK, COLUMN_BLOCK, REGISTER, UPPER, NONE = 22, 19, 16, 1 << 11, 1 << 10
PLACE = NONE | NONE - 1
BIAS = 127
EXPONENT = 0x7F80


def holds(number_format: Format) -> bool:
    """Plain BF16."""
    return number_format.element.name == "BF16" and not number_format.parameters


def extent(weight: ResidentTensor) -> tuple[int, int]:
    """Rows and columns."""
    words = weight.arrays["words"]
    return tiles.extent(weight, 8 * words.shape[-2], words.shape[-1], weight.option("tile_rows"))


def pack(weight: Matrices) -> Packed:
    """Lays out BF16 codes, summed over their rows."""
    rows, columns = weight.matrix
    tile_rows, tile_columns = choose_tile(rows, TILE_ROWS), TILE_COLUMNS
    made = []
    for codes in weight.codes["code"].reshape(-1, rows, columns):
        words, top, escapes = _pack_words(codes, tile_rows=tile_rows)
        found = np.unpackbits(np.asarray(escapes), axis=-1, count=columns)
        row, column = np.nonzero(found)
        other = codes.at[row ^ 1, column].get(mode="fill", fill_value=0)
        own = np.asarray(codes[row, column])
        made.append((words, top, row, column, own, np.asarray(other)))
    grid = -(-columns // tile_columns), -(-rows // tile_rows)
    per_tile = [
        np.bincount(c // tile_columns * grid[1] + r // tile_rows, minlength=math.prod(grid))
        for _, _, r, c, *_ in made
    ]
    most = max(1, *(-(-int(n.max()) // CHUNK) for n in per_tile))
    arrays: dict[str, Any] = {
        "words": jnp.stack([m[0] for m in made]),
        "top": jnp.stack([m[1] for m in made]),
        "counts": np.stack(per_tile).reshape(-1, *grid).astype(np.int32),
        "escapes": np.stack(
            [_escape_lists(*m[2:], grid, tile_rows, tile_columns, most) for m in made]
        ),
    }
    stacked = {
        name: jnp.asarray(array).reshape(*weight.stack, *array.shape[1:])
        for name, array in arrays.items()
    }
    special = [_special_lists(*m[2:5], grid, tile_rows, tile_columns) for m in made]
    most = max(lists.shape[-1] for lists in special)
    if most:
        filled = [np.pad(a, ((0, 0), (0, 0), (0, most - a.shape[-1]))) for a in special]
        stacked["special"] = jnp.asarray(np.stack(filled).reshape(*weight.stack, *grid, 3, most))
    highest = int(max(int(m[1].max()) for m in made))
    options = {
        "tile_rows": tile_rows,
        "tile_columns": tile_columns,
        "shift": (highest - window12.WINDOW) // 2,
        "inline": min(MOST_INLINE, int(np.median([-(-n // CHUNK) for n in per_tile]))),
    }
    return stacked, options


def abstract(weight: Matrices) -> Packed:
    """What `pack` makes of Gaussian weights."""
    (rows, columns), stack = weight.matrix, weight.stack
    tile_rows, tile_columns = choose_tile(rows, TILE_ROWS), TILE_COLUMNS
    wide, high = ceil_to(columns, LANES), ceil_to(rows, tile_rows)
    chunks = chunks_of(tile_rows * min(tile_columns, wide))
    grid = -(-columns // tile_columns), high // tile_rows
    arrays = {
        "words": sized(jnp.uint32, *stack, 3, high // 8, wide),
        "top": sized(jnp.uint8, *stack, 1, wide),
        "counts": sized(jnp.int32, *stack, *grid),
        "escapes": sized(jnp.int32, *stack, *grid, -(-chunks // 4) * 8, CHUNK),
    }
    options = {
        "tile_rows": tile_rows,
        "tile_columns": tile_columns,
        "shift": 52,
        "inline": min(MOST_INLINE, chunks),
    }
    return arrays, options


def chunks_of(weights: int) -> int:
    """Chunks of escapes that a tile of so many weights has."""
    return -(-escapes_of(weights) // CHUNK)


@partial(jax.jit, static_argnames="tile_rows")
def _pack_words(codes: UInt16[Array, "rows columns"], *, tile_rows: int) -> tuple[Array, ...]:
    """Words, tops, and a bit for every escape."""
    exponents = ((codes >> 7) & 0xFF).astype(jnp.uint8)
    counts = jax.lax.map(
        lambda e: (exponents == e).sum(0, dtype=jnp.int32), jnp.arange(256, dtype=jnp.uint8)
    )
    top = window12.choose_top(counts.T).astype(jnp.uint16)
    slots = window12.to_slots(codes, top).astype(jnp.uint32)
    slots = padded(slots, tile_rows, LANES)
    tile = slots.reshape(-1, 4, tile_rows // 8, 2, slots.shape[-1])
    pairs = jnp.moveaxis(tile[:, :, :, 0] | tile[:, :, :, 1] << 16, 1, -1)
    words = jnp.moveaxis(window12.pack(pairs), -1, 0).reshape(3, -1, slots.shape[-1])
    tops = padded(top.astype(jnp.uint8)[None], 1, LANES)
    return words, tops, jnp.packbits(window12.is_escape(codes, top), axis=-1)


def _escape_lists(
    row: np.ndarray,
    column: np.ndarray,
    codes: np.ndarray,
    others: np.ndarray,
    grid: tuple[int, int],
    tile_rows: int,
    tile_columns: int,
    most: int,
) -> np.ndarray:
    """int32[column tiles, row tiles, rows, 128], see the module; `others` fill the pairs."""
    tile = column // tile_columns * grid[1] + row // tile_rows
    chunk, lane = np.divmod(tiles.places(tile), CHUNK)
    lists = np.zeros((math.prod(grid), -(-most // 4) * 8, CHUNK), np.int32)
    lists[:, ::2] = NONE
    upper, pair, column = row & 1, row % tile_rows >> 1, column % tile_columns
    block = pair >> 3 << PAIR_BLOCK | column >> 7 << COLUMN_BLOCK
    lists[tile, 2 * chunk, lane] = block | upper * UPPER | (pair & 7) << 7 | column & 127
    codes, others = (a.astype(np.uint32) for a in (codes, others))
    pairs = np.where(upper, codes << 16 | others, others << 16 | codes)
    lists[tile, 2 * chunk + 1, lane] = pairs.view(np.int32)
    return lists.reshape(*grid, *lists.shape[1:])


def _special_lists(
    row: np.ndarray,
    column: np.ndarray,
    codes: np.ndarray,
    grid: tuple[int, int],
    tile_rows: int,
    tile_columns: int,
) -> np.ndarray:
    """int32[column tiles * row tiles, 3, n], see the module."""
    own = np.flatnonzero((codes & EXPONENT) == EXPONENT)
    row, column, codes = row[own], column[own], codes[own]
    tile = column // tile_columns * grid[1] + row // tile_rows
    place = tiles.places(tile)
    lists = np.zeros((math.prod(grid), 3, int(place.max(initial=-1)) + 1), np.int32)
    for i, part in enumerate((row % tile_rows, column % tile_columns, codes)):
        lists[tile, i, place] = part
    return lists


def codes_of(weight: ResidentTensor) -> UInt16[Array, "rows columns"]:
    """Codes of a single packed matrix, in plain JAX: the inverse of `pack`."""
    arrays, (rows, columns) = weight.arrays, extent(weight)
    tile_rows, tile_columns = weight.option("tile_rows"), weight.option("tile_columns")
    codes = _unpack_words(arrays["words"], arrays["top"], tile_rows)
    lists = arrays["escapes"]
    row, column, code = _places(lists, tile_rows, codes.shape[0])
    column += jnp.arange(lists.shape[0])[:, None, None, None] * tile_columns
    codes = codes.at[row, column].set(code, mode="drop")
    return codes[:rows, :columns]


def _places(lists: Array, tile_rows: int, none: int) -> tuple[Array, Array, Array]:
    """Rows (`none` where there is no escape), columns in their tile, and codes, of lists."""
    where, pair = lists[..., 0::2, :], jax.lax.bitcast_convert_type(lists[..., 1::2, :], jnp.uint32)
    row = row_of(where) + jnp.arange(lists.shape[-3])[:, None, None] * tile_rows
    column = (where >> COLUMN_BLOCK & 7) * LANES + (where & (LANES - 1))
    code = jnp.where(where & UPPER != 0, pair >> 16, pair).astype(jnp.uint16)
    return jnp.where(where & NONE != 0, none, row), column, code


def row_of(where: Array) -> Array:
    """Rows of escapes in their tile."""
    return (where >> PAIR_BLOCK << 4) + (where >> 6 & 0xE) + (where & UPPER != 0).astype(jnp.int32)


def _unpack_words(words: Array, top: Array, tile_rows: int) -> UInt16[Array, "rows columns"]:
    pairs = window12.unpack(jnp.moveaxis(words, 0, -1))
    tile = pairs.reshape(-1, tile_rows // 8, words.shape[-1], 4)
    halves = jnp.stack([tile & 0xFFFF, tile >> 16], axis=2).astype(jnp.uint16)
    slots = jnp.moveaxis(halves, -1, 1).reshape(-1, words.shape[-1])
    return window12.from_slots(slots, top.astype(jnp.uint16))


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "*shape"]:
    """The dense weight, in plain JAX: what the kernels are held to."""
    return over_stack(weight, lambda one: _decode(one, dtype))


def _decode(weight: ResidentTensor, dtype: Any) -> Array:
    numbers = jax.lax.bitcast_convert_type(codes_of(weight), jnp.bfloat16).astype(dtype)
    return numbers.T if weight.turned else numbers


@partial(jax.jit, static_argnames="dtype")
def take_rows(
    weight: ResidentTensor, ids: Int[Array, "*batch"], dtype: Any
) -> Shaped[Array, "*batch columns"]:
    """Rows of a two-dimensional weight; of a turned one only those are decoded."""
    rows, columns = weight.matrix
    flat = jnp.clip(ids.reshape(-1), 0, rows - 1)
    if not weight.turned:
        return decode(weight, dtype)[flat].reshape(*ids.shape, columns)
    arrays, tile_columns = weight.arrays, weight.option("tile_columns")
    tile_rows = weight.option("tile_rows")
    codes = _unpack_words(arrays["words"][..., flat], arrays["top"][:, flat], tile_rows)
    lists = arrays["escapes"][flat // tile_columns]
    row, column, code = _places(lists, tile_rows, codes.shape[0])
    own = column == (flat % tile_columns)[:, None, None, None]
    at = jnp.broadcast_to(jnp.arange(flat.size)[:, None, None, None], row.shape)
    codes = codes.at[jnp.where(own, row, codes.shape[0]), at].set(code, mode="drop")[:columns].T
    numbers = jax.lax.bitcast_convert_type(codes, jnp.bfloat16)
    return numbers.reshape(*ids.shape, columns).astype(dtype)
