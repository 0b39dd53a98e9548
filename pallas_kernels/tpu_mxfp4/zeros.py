"""Signs of zeros, which no product can tell: they lie apart from the words that products read.

Zeros of a column are counted from the top of every tile of rows: bit r & 31 of word r >> 5 is the
sign of the r-th.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, UInt8, UInt32

TILE = 1024  # rows, of which columns are whole
WORD = 32
ZERO_SHARE = 0.088  # of Gaussian weights
DEVIATIONS = 5.0  # that the fullest tile of many is above the mean, at the most


def tile_rows(rows: int) -> int:
    """Rows of a tile of a matrix of so many."""
    return TILE if rows % TILE == 0 else rows


def words_of(rows: int) -> int:
    """Words that a tile of Gaussian weights needs for a column."""
    mean = ZERO_SHARE * rows
    return min(-(-rows // WORD), math.ceil((mean + DEVIATIONS * math.sqrt(mean)) / WORD))


def _ranks(zero: Bool[Array, "rows columns"]) -> Int32[Array, "tiles tile columns"]:
    """Zeros before each row in its tile."""
    tiles = zero.reshape(-1, tile_rows(zero.shape[0]), zero.shape[1]).astype(jnp.int32)
    return jnp.cumsum(tiles, axis=1) - tiles


@jax.jit
def needed(
    codes: UInt8[Array, "rows columns"], negative: Bool[Array, "rows columns"]
) -> Int32[Array, ""]:
    """Words for a column of a tile, up to the last -0."""
    places = jnp.where(negative.reshape(-1), _ranks(codes == 0).reshape(-1) + 1, 0)
    return -(-places.max() // WORD)


@partial(jax.jit, static_argnames="words")
def pack(
    codes: UInt8[Array, "rows columns"], negative: Bool[Array, "rows columns"], *, words: int
) -> UInt32[Array, "tiles words columns"]:
    """Signs of the zeros among codes."""
    high = tile_rows(codes.shape[0])
    shape = high, codes.shape[0] // high, codes.shape[1]
    by_row = [a.reshape(shape[1], high, -1).swapaxes(0, 1) for a in (codes == 0, negative)]
    which = jnp.arange(words, dtype=jnp.int32)[:, None, None]

    def row(carry: tuple[Array, Array], each: Any) -> tuple[tuple[Array, Array], None]:
        signs, rank = carry
        zero, minus = each
        bit = minus.astype(jnp.uint32) << (rank & WORD - 1).astype(jnp.uint32)
        signs |= jnp.where(which == rank[None] >> 5, bit[None], np.uint32(0))
        return (signs, rank + zero), None

    start = jnp.zeros((words, *shape[1:]), jnp.uint32), jnp.zeros(shape[1:], jnp.int32)
    return jax.lax.scan(row, start, tuple(by_row))[0][0].swapaxes(0, 1)


def lengthened(
    signs: UInt32[Array, "tiles words columns"], words: int
) -> UInt32[Array, "tiles more columns"]:
    """Signs with so many words for a column."""
    return jnp.pad(signs, ((0, 0), (0, words - signs.shape[1]), (0, 0)))


def unpack(
    zero: Bool[Array, "rows columns"], signs: UInt32[Array, "tiles words columns"]
) -> Bool[Array, "rows columns"]:
    """Which zeros are -0."""

    def tile(each: tuple[Array, Array]) -> Array:
        zero, signs = each
        rank = jnp.cumsum(zero, axis=0, dtype=jnp.int32) - zero
        place = jnp.minimum(rank >> 5, signs.shape[0] - 1)
        word = jnp.take_along_axis(signs, place, axis=0)
        bit = word >> (rank & WORD - 1).astype(jnp.uint32) & 1
        return zero & (bit == 1) & (rank < WORD * signs.shape[0])

    high = zero.shape[0] // signs.shape[0]
    return jax.lax.map(tile, (zero.reshape(-1, high, zero.shape[1]), signs)).reshape(zero.shape)
