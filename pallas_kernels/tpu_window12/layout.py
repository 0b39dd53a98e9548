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

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Shaped, UInt16

from jentropy.codecs import window12
from jentropy.pallas_kernels import bf16, tiles
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed, at_places, padded, sized
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES, ceil_to, choose_tile

TILE_ROWS, TILE_COLUMNS = (2048, 1536, 2560, 1024, 512), 1024
ESCAPES = 128  # of a chunk, which are patched together
MOST_INLINE = 8  # chunks; each makes the program longer
GAUSSIAN_SHIFT = 52  # of weights of deviation 0.02
# Of where an escape is.
PAIR_BLOCK, COLUMN_BLOCK, REGISTER, UPPER, NONE = 22, 19, 16, 1 << 11, 1 << 10
PLACE = NONE | NONE - 1
EXPONENT = 0x7F80
Items = Shaped[np.ndarray, " escapes"]


def chunks_of(weights: int) -> int:
    """Chunks of escapes that a tile of so many Gaussian weights has."""
    return -(-bf16.escapes_of(weights) // ESCAPES)


def shapes(
    weight: Matrices,
    chunks: int | None = None,
    inline: int | None = None,
    shift: int = GAUSSIAN_SHIFT,
    special: int = 0,
) -> Packed:
    """Arrays without data, and options.

    Args:
      chunks: of escapes in the longest list, and `inline`, in most; None: as of Gaussian weights.
      shift: the option.
      special: NaN and Inf in the longest list.
    """
    (rows, columns), stack = weight.matrix, weight.stack
    tile_rows = choose_tile(rows, TILE_ROWS)
    wide, high = ceil_to(columns, LANES), ceil_to(rows, tile_rows)
    gaussian = chunks_of(tile_rows * min(TILE_COLUMNS, wide))
    chunks = gaussian if chunks is None else chunks
    grid = -(-columns // TILE_COLUMNS), high // tile_rows
    arrays = {
        "words": sized(jnp.uint32, *stack, 3, high // 8, wide),
        "top": sized(jnp.uint8, *stack, 1, wide),
        "counts": sized(jnp.int32, *stack, *grid),
        "escapes": sized(jnp.int32, *stack, *grid, -(-chunks // 4) * 8, ESCAPES),
    }
    if special:
        arrays["special"] = sized(jnp.int32, *stack, *grid, 3, special)
    options = {
        "tile_rows": tile_rows,
        "tile_columns": TILE_COLUMNS,
        "shift": shift,
        "inline": min(MOST_INLINE, gaussian if inline is None else inline),
    }
    return arrays, options


def pack(weight: Matrices) -> Packed:
    """Lays out BF16 codes, summed over their rows."""
    rows, columns = weight.matrix
    tile_rows = choose_tile(rows, TILE_ROWS)
    words, top, marks = zip(
        *(_pack_words(codes, tile_rows=tile_rows) for codes in weight.each), strict=True
    )
    index, row, column = bf16.marked(np.stack([np.asarray(m) for m in marks]))
    codes = at_places(weight.each, index, row, column)
    others = at_places(weight.each, index, row ^ 1, column)
    wide, high = -(-columns // TILE_COLUMNS), -(-rows // tile_rows)
    tile = (index * wide + column // TILE_COLUMNS) * high + row // tile_rows
    row, column = row % tile_rows, column % TILE_COLUMNS
    counts = np.bincount(tile, minlength=len(words) * wide * high)
    chunks = -(-counts // ESCAPES)
    special = _special_lists(counts.size, tile, row, column, codes)
    packed = shapes(
        weight,
        chunks=max(1, int(chunks.max())),
        inline=int(np.median(chunks)),
        shift=(max(int(t.max()) for t in top) - window12.WINDOW) // 2,
        special=special.shape[-1],
    )
    lines = packed[0]["escapes"].shape[-2]
    arrays = {
        "words": jnp.stack(words),
        "top": jnp.stack(top),
        "counts": counts.astype(np.int32),
        "escapes": _lists(counts.size, lines, tile, row, column, codes, others),
    }
    if special.size:
        arrays["special"] = special
    return weight.filled(packed, arrays)


@partial(jax.jit, static_argnames="tile_rows")
def _pack_words(codes: UInt16[Array, "rows columns"], *, tile_rows: int) -> tuple[Array, ...]:
    """Words, tops, and a bit for every escape."""
    top = bf16.tops(codes, 0)
    slots = window12.to_slots(codes, top).astype(jnp.uint32)
    slots = padded(slots, tile_rows, LANES)
    tile = slots.reshape(-1, 4, tile_rows // 8, 2, slots.shape[-1])
    pairs = jnp.moveaxis(tile[:, :, :, 0] | tile[:, :, :, 1] << 16, 1, -1)
    words = jnp.moveaxis(window12.pack(pairs), -1, 0).reshape(3, -1, slots.shape[-1])
    padded_top = padded(top.astype(jnp.uint8)[None], 1, LANES)
    return words, padded_top, jnp.packbits(window12.is_escape(codes, top), axis=-1)


def _lists(
    count: int,
    lines: int,
    tile: Items,
    row: Items,
    column: Items,
    codes: Items,
    others: Items,
) -> Int32[np.ndarray, "tiles lines 128"]:
    """Lists of escapes, see the module; `others` fill the pairs."""
    chunk, lane = np.divmod(tiles.places(tile), ESCAPES)
    lists = np.zeros((count, lines, ESCAPES), np.int32)
    lists[:, ::2] = NONE
    upper, pair = row & 1, row >> 1
    block = pair >> 3 << PAIR_BLOCK | column >> 7 << COLUMN_BLOCK
    lists[tile, 2 * chunk, lane] = block | upper * UPPER | (pair & 7) << 7 | column & 127
    codes, others = (a.astype(np.uint32) for a in (codes, others))
    pairs = np.where(upper, codes << 16 | others, others << 16 | codes)
    lists[tile, 2 * chunk + 1, lane] = pairs.view(np.int32)
    return lists


def _special_lists(
    count: int, tile: Items, row: Items, column: Items, codes: Items
) -> Int32[np.ndarray, "tiles 3 n"]:
    """Lists of NaN and Inf, see the module."""
    special = np.flatnonzero((codes & EXPONENT) == EXPONENT)
    place = tiles.places(tile[special])
    lists = np.zeros((count, 3, int(place.max(initial=-1)) + 1), np.int32)
    lists[tile[special], :, place] = np.stack([row, column, codes], axis=-1)[special]
    return lists


def _places(lists: Array, tile_rows: int, none: int) -> tuple[Array, Array, Array]:
    """Rows (`none` where there is no escape), columns in their tile, and codes, of lists."""
    where, pair = lists[..., 0::2, :], jax.lax.bitcast_convert_type(lists[..., 1::2, :], jnp.uint32)
    row = row_of(where) + jnp.arange(lists.shape[-3])[:, None, None] * tile_rows
    column = (where >> COLUMN_BLOCK & 7) * LANES + (where & (LANES - 1))
    code = jnp.where(where & UPPER != 0, pair >> 16, pair).astype(jnp.uint16)
    return jnp.where(where & NONE != 0, none, row), column, code


def row_of(where: Int32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """Rows of escapes in their tile."""
    return (where >> PAIR_BLOCK << 4) + (where >> 6 & 0xE) + (where & UPPER != 0).astype(jnp.int32)


def _unpack_words(words: Array, top: Array, tile_rows: int) -> UInt16[Array, "rows columns"]:
    pairs = window12.unpack(jnp.moveaxis(words, 0, -1))
    tile = pairs.reshape(-1, tile_rows // 8, words.shape[-1], 4)
    halves = jnp.stack([tile & 0xFFFF, tile >> 16], axis=2).astype(jnp.uint16)
    slots = jnp.moveaxis(halves, -1, 1).reshape(-1, words.shape[-1])
    return window12.from_slots(slots, top.astype(jnp.uint16))


def extent(weight: ResidentTensor) -> Extent:
    """Rows and columns, padded to tiles."""
    words = weight.arrays["words"]
    return (8 * words.shape[-2], words.shape[-1]), (weight.option("tile_rows"), LANES)


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded, in plain JAX: the inverse of `pack`."""
    arrays, tile_rows = weight.arrays, weight.option("tile_rows")
    codes = _unpack_words(arrays["words"], arrays["top"], tile_rows)
    lists = arrays["escapes"]
    row, column, code = _places(lists, tile_rows, codes.shape[0])
    column += jnp.arange(lists.shape[0])[:, None, None, None] * weight.option("tile_columns")
    return bf16.numbers(codes.at[row, column].set(code, mode="drop"), dtype)


def take(weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any) -> Shaped[Array, "ids rows"]:
    """Columns of the packed matrix, one after the other, each out of the 128 that it lies among.

    To take columns alone, XLA would first copy all words to an order where that is fast.
    """
    arrays, tile_columns = weight.arrays, weight.option("tile_columns")
    tile_rows = weight.option("tile_rows")

    def one(at: Array) -> Array:
        register, lane = jnp.divmod(at, LANES)

        def at_lane(array: Array) -> Array:
            near = jax.lax.dynamic_slice_in_dim(array, register * LANES, LANES, axis=-1)
            is_it = (jnp.arange(LANES) == lane).reshape(*(1,) * (array.ndim - 1), LANES)
            return jnp.where(is_it, near, 0).max(axis=-1, keepdims=True)

        words, top = at_lane(arrays["words"]), at_lane(arrays["top"])
        codes = _unpack_words(words, top, tile_rows)[:, 0]
        tile, within = jnp.divmod(at, tile_columns)
        lists = jax.lax.dynamic_index_in_dim(arrays["escapes"], tile, keepdims=False)
        row, column, code = (part.reshape(-1) for part in _places(lists, tile_rows, codes.size))
        here = jnp.arange(codes.size)[:, None] == jnp.where(column == within, row, codes.size)[None]
        # A row has one escape at the most, whose code is not 0.
        return codes | jnp.where(here, code[None], 0).max(axis=1, initial=0)

    return bf16.numbers(jax.lax.map(one, ids), dtype)


LAYOUT = Layout(
    name="tpu_window12",
    backend="tpu",
    reduces=-2,
    stacked=("words", 3),
    columns={"words": -1, "top": -1, "counts": -2, "escapes": -4, "special": -4},
    rows={"words": -2, "counts": -1, "escapes": -3, "special": -3},
    lists={"escapes": (-2, (NONE, 0)), "special": (-1, (0,))},
    largest=("shift", "inline"),
    holds=bf16.holds,
    shapes=shapes,
    pack=pack,
    extent=extent,
    decode=decode,
    take=take,
    has_kernels=True,
)
