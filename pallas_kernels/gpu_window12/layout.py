"""BF16 for Hopper GPUs: window12 in the order in which WGMMA takes weights from registers.

Rows are outputs, columns are summed over; both are padded with zeros to multiples of 128. A block
is 64 by 64 weights in 12 rows of 128 words, see `hopper.fragments`: rows 4 w to 4 w + 3 hold word w
of every place, three words of four fragments, so that a thread reads 16 bytes three times and has
the 16 registers of a block after unpacking.

    words:   uint32[row blocks, column blocks, 12, 128]
    scale:   bfloat16[rows]   2^(top - 15): a slot, read as bfloat16, times this is the weight. The
             window is that of the row
    escapes: uint32[row blocks, column blocks / 2, n]   by 64 x 128 weights: how many, then

             bit 0-15 code | 16 which half | 17-25 place in the fragment | 26-28 which fragment

Escapes have slots of 0. Every code survives.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Int, Integer, Shaped, UInt16, UInt32

from jentropy.codecs import window12
from jentropy.pallas_kernels import bf16
from jentropy.pallas_kernels.hopper import fragments
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed, padded, sized
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import ceil_to

TILE = 128  # rows and columns are padded to these
LISTED = 128  # columns whose escapes are in one list
LIST_WORDS = 16  # lists are multiples of these: the copy engine moves 128 bytes of two at least
MOST_LISTED = 1024  # words of a list, which has to fit into shared memory beside the weights
ROOMS = 64, MOST_LISTED  # that lists are made in, so that no program is compiled for each length
# 2^(top - 15) must be a bfloat16. Larger weights, from 2^16 on, are escapes.
HIGHEST_TOP = 142
PLACE_BIT, HALF_BIT, FRAGMENT_BIT = 17, 16, 26


def shapes(weight: Matrices, list_words: int = LIST_WORDS) -> Packed:
    """Arrays without data, with lists of so many words."""
    high, wide = (ceil_to(size, TILE) for size in weight.matrix)
    blocks, stack = high // fragments.ROWS, weight.stack
    arrays = {
        "words": sized(jnp.uint32, *stack, blocks, wide // fragments.BLOCK, 12, 128),
        "scale": sized(jnp.bfloat16, *stack, high),
        "escapes": sized(jnp.uint32, *stack, blocks, wide // LISTED, list_words),
    }
    return arrays, {}


def pack(weight: Matrices) -> Packed | None:
    """Lays out BF16 codes; None where one list would have to hold too many escapes."""
    words, top, counts = zip(*map(_pack_words, weight.each), strict=True)
    list_words = ceil_to(1 + max(int(n.max()) for n in counts), LIST_WORDS)
    if list_words > MOST_LISTED:
        return None
    room = next(room for room in ROOMS if list_words <= room)
    pairs = zip(weight.each, top, strict=True)
    lists = [_lists(*pair, room)[..., :list_words] for pair in pairs]
    arrays = {
        "words": jnp.stack(words),
        "scale": scale_of(jnp.stack(top)),
        "escapes": jnp.stack(lists),
    }
    return weight.filled(shapes(weight, list_words), arrays)


@jax.jit
def _pack_words(codes: UInt16[Array, "rows columns"]) -> tuple[Array, Array, Array]:
    """Words, the top of every row's window, and how many escapes each list has."""
    top = jnp.minimum(bf16.tops(codes, 1), HIGHEST_TOP)[:, None]
    slots = padded(window12.to_slots(codes, top), TILE, TILE)
    words = window12.pack(jnp.moveaxis(fragments.pairs(fragments.arrange(slots)), 2, -1))
    high, wide = words.shape[:2]
    words = jnp.moveaxis(words, -1, 2).reshape(high, wide, 12, 128)
    escapes = padded(window12.is_escape(codes, top), TILE, TILE)
    per_list = escapes.reshape(high, fragments.ROWS, -1, LISTED).sum((1, 3), dtype=jnp.int32)
    return words, jnp.pad(top[:, 0], (0, -codes.shape[0] % TILE), constant_values=15), per_list


def scale_of(top: Integer[Array, "*shape"]) -> BFloat16[Array, "*shape"]:
    """2^(top - 15)."""
    exponent = top.astype(jnp.uint16) - window12.WINDOW + bf16.BIAS
    return jax.lax.bitcast_convert_type(exponent << 7, jnp.bfloat16)


def top_of(scale: BFloat16[Array, "*shape"]) -> UInt16[Array, "*shape"]:
    """The inverse of `scale_of`."""
    bits = jax.lax.bitcast_convert_type(scale, jnp.uint16)
    return (bits >> 7) - np.uint16(bf16.BIAS - window12.WINDOW)


@partial(jax.jit, static_argnames="size")
def _lists(
    codes: UInt16[Array, "rows columns"], top: UInt16[Array, " padded"], size: int
) -> UInt32[Array, "row_blocks lists size"]:
    """Escapes as the module says; a row block after the other, so that memory stays small."""
    escapes = padded(window12.is_escape(codes, top[: codes.shape[0], None]), TILE, TILE)
    codes = padded(codes, TILE, TILE)
    row, column = jnp.arange(fragments.ROWS)[:, None], jnp.arange(LISTED)[None]
    where = (
        fragments.place_of(row, column % fragments.COLUMNS) << PLACE_BIT
        | column % 2 << HALF_BIT
        | column // fragments.COLUMNS << FRAGMENT_BIT
    ).reshape(1, -1)

    def of_rows(one: tuple[Array, Array]) -> Array:
        code, listed = (
            a.reshape(fragments.ROWS, -1, LISTED).swapaxes(0, 1).reshape(-1, where.size)
            for a in one
        )
        rank = jnp.cumsum(listed, axis=1, dtype=jnp.int32)  # from 1: the count comes first
        lists = jnp.zeros((code.shape[0], size), jnp.uint32)
        lists = lists.at[:, 0].set(rank[:, -1].astype(jnp.uint32))
        at = jnp.arange(code.shape[0])[:, None], jnp.where(listed, rank, size)
        return lists.at[at].set(where.astype(jnp.uint32) | code, mode="drop")

    split = (-1, fragments.ROWS, codes.shape[1])
    return jax.lax.map(of_rows, (codes.reshape(split), escapes.reshape(split)))


def entries(
    lists: UInt32[Array, "row_blocks lists size"],
) -> tuple[Array, Array, Array]:
    """Row, column and code of every entry of lists; rows past the end where there is none."""
    entry, (high, wide, size) = lists[..., 1:], lists.shape
    used = jnp.arange(size - 1)[None, None] < lists[..., :1].astype(jnp.int32)
    place = (entry >> PLACE_BIT & (fragments.PLACES - 1)).astype(jnp.int32)
    row = fragments.row_of(place) + jnp.arange(high)[:, None, None] * fragments.ROWS
    column = fragments.column_of(place) + (entry >> HALF_BIT & 1).astype(jnp.int32)
    column += (entry >> FRAGMENT_BIT).astype(jnp.int32) * fragments.COLUMNS
    column += jnp.arange(wide)[None, :, None] * LISTED
    return jnp.where(used, row, high * fragments.ROWS), column, entry.astype(jnp.uint16)


def unpack_block(words: UInt32[Array, "*shape 12 128"]) -> UInt32[Array, "*shape 4 512"]:
    """Pairs of slots by fragment and place."""
    planes = words.reshape(*words.shape[:-2], window12.WORDS, fragments.PLACES)
    return jnp.stack(
        window12.unpack_words(*(planes[..., i, :] for i in range(window12.WORDS))), axis=-2
    )


def _from_words(words: Array, scale: Array) -> UInt16[Array, "rows columns"]:
    slots = fragments.restore(fragments.halves(unpack_block(words)))
    return window12.from_slots(slots, top_of(scale)[:, None])


def extent(weight: ResidentTensor) -> Extent:
    """Rows and columns, padded to tiles."""
    high, wide = weight.arrays["words"].shape[-4:-2]
    return (fragments.ROWS * high, fragments.BLOCK * wide), (TILE, TILE)


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded, in plain JAX: the inverse of `pack`."""
    arrays = weight.arrays
    codes = _from_words(arrays["words"], arrays["scale"])
    row, column, code = entries(arrays["escapes"])
    return bf16.numbers(codes.at[row, column].set(code, mode="drop"), dtype)


def take(
    weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any
) -> Shaped[Array, "ids columns"]:
    """Rows of the packed matrix."""
    arrays = weight.arrays
    block, inside = ids // fragments.ROWS, ids % fragments.ROWS
    words = arrays["words"]
    words = words.reshape(*words.shape[:2], window12.WORDS, fragments.PLACES)
    words = words[block[:, None], :, :, jnp.asarray(fragments.PLACES_OF_ROWS)[inside]]
    pairs = jnp.moveaxis(window12.unpack(words), 1, -1)  # row, column block, fragment, place
    slots = fragments.halves(pairs).reshape(ids.size, -1)
    codes = window12.from_slots(slots, top_of(arrays["scale"][ids])[:, None])
    row, column, code = entries(arrays["escapes"][block])
    here = row == (jnp.arange(ids.size) * fragments.ROWS + inside)[:, None, None]
    at = jnp.arange(ids.size)[:, None, None], jnp.where(here, column, codes.shape[1])
    return bf16.numbers(codes.at[at].set(code, mode="drop"), dtype)


LAYOUT = Layout(
    name="gpu_window12",
    backend="gpu",
    reduces=-1,
    stacked=("words", 4),
    columns={"words": -3, "escapes": -2},
    rows={"words": -4, "scale": -1, "escapes": -3},
    lists={"escapes": (-1, (0,))},
    holds=bf16.holds,
    shapes=shapes,
    pack=pack,
    extent=extent,
    decode=decode,
    take=take,
    has_kernels=True,
)
