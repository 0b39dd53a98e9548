"""Blocks of MXFP4 that words lack: whose powers are far from those of their columns, and NaN.

They are listed by 128 columns and chunk of 128 rows: int32[6, n], of each block

    place   block in the chunk << 7 | column of the 128; -1 fills lists up
    scale   E8M0 code
    codes   four words of eight nibbles, the first row in the low bits

Words have zeros in their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32, UInt8

from jentropy import formats
from jentropy.formats import MXFP4
from jentropy.pallas_kernels import tiles
from jentropy.pallas_kernels.tiles import LANES

from .orders import BLOCK, CHUNK

NAN = 255  # an E8M0 code
FIELDS = 6
RARE_SHARE = 8  # lists take an eighth of the words' bytes at the most
BLOCKS = CHUNK // BLOCK


Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # blocks and columns, scales, words of codes


def entries(
    left: Bool[np.ndarray, "blocks columns"],
    codes: UInt8[Array, "rows columns"],
    scales: UInt8[Array, "blocks columns"],
) -> Found:
    """The blocks of a matrix that are left: where they are, and what."""
    where = np.stack(np.nonzero(left))
    if not where.size:
        return where, np.zeros(0, np.int32), np.zeros((0, BLOCK // 8), np.int32)
    block, column = where
    rows = codes.reshape(*left.shape[:1], BLOCK, left.shape[1])[block, :, column]
    eight = np.asarray(rows).astype(np.uint32).reshape(-1, BLOCK // 8, 8)
    words = np.bitwise_or.reduce(eight << np.arange(0, 32, 4, dtype=np.uint32), axis=-1)
    return where, np.asarray(scales[block, column]).astype(np.int32), words.view(np.int32)


def lists(
    found: Sequence[Found], grid: tuple[int, ...]
) -> Int32[np.ndarray, "matrices tiles chunks 6 n"]:
    """Lists of the blocks that are left, of each matrix its own.

    Args:
      found: of each matrix.
      grid: tiles of columns, and chunks.
    """
    matrix = np.repeat(np.arange(len(found)), [where.shape[1] for where, _, _ in found])
    block, column = np.concatenate([where for where, _, _ in found], axis=1)
    tile = (matrix * grid[0] + column // LANES) * grid[1] + block // BLOCKS
    place = tiles.places(tile)
    made = np.full(
        (len(found) * grid[0] * grid[1], FIELDS, place.max(initial=-1) + 1), -1, np.int32
    )
    made[tile, 0, place] = block % BLOCKS << 7 | column % LANES
    made[tile, 1, place] = np.concatenate([scales for _, scales, _ in found])
    made[tile, 2:, place] = np.concatenate([words for _, _, words in found])
    return made.reshape(len(found), *grid, *made.shape[1:])


def codes_of(lists: Int[Array, "*tiles 6 n"]) -> tuple[Array, Array, Array, Array]:
    """Blocks in their chunk, columns of the 128 (128 where nothing is), codes, scale codes.

    Codes are uint8[*tiles, 32, n].
    """
    place = lists[..., 0, :]
    words = jax.lax.bitcast_convert_type(lists[..., 2:, :], jnp.uint32)
    nibbles = jnp.stack([(words >> (4 * i)).astype(jnp.uint8) & 0xF for i in range(8)], axis=-2)
    codes = nibbles.reshape(*words.shape[:-2], BLOCK, words.shape[-1])
    column = jnp.where(place < 0, LANES, place & LANES - 1)
    return jnp.maximum(place, 0) >> 7, column, codes, lists[..., 1, :].astype(jnp.uint8)


def put_back(
    code: UInt8[Array, "rows ids"],
    scale: UInt8[Array, "blocks ids"],
    lists: Int32[Array, "tiles chunks 6 n"],
    ids: Int[Array, " ids"],
) -> tuple[Array, Array]:
    """Codes and scale codes of some columns, those of listed blocks in their places."""
    block, column, codes, scales = codes_of(lists[ids // LANES])
    block += BLOCKS * jnp.arange(lists.shape[1])[None, :, None]
    block = jnp.where(column == (ids % LANES)[:, None, None], block, scale.shape[0])
    at = jnp.broadcast_to(jnp.arange(ids.size)[:, None, None], block.shape)
    whole = code.reshape(-1, BLOCK, ids.size)
    whole = whole.at[block, :, at].set(jnp.moveaxis(codes, -2, -1), mode="drop")
    return whole.reshape(code.shape), scale.at[block, at].set(scales, mode="drop")


def numbers_of(lists: Int32[Array, "tiles chunks 6 n"]) -> tuple[Array, Array, Array]:
    """First rows of listed blocks, their columns (past all where nothing is), and numbers.

    Numbers are float32[tiles, chunks, 32, n], rows and columns those of the whole matrix.
    """
    block, column, codes, scales = codes_of(lists)
    flat = jnp.moveaxis(codes, -2, 0).reshape(BLOCK, -1)
    number_format = MXFP4.with_parameter("scale", block=(BLOCK, 1))
    arrays = {"code": flat, "scale": scales.reshape(1, -1)}
    numbers = formats.dequantize(number_format, arrays, jnp.float32)
    numbers = jnp.moveaxis(numbers.reshape(BLOCK, *block.shape), 0, -2)
    row = (BLOCKS * jnp.arange(lists.shape[1])[None, :, None] + block) * BLOCK
    here = column + LANES * jnp.arange(lists.shape[0])[:, None, None]
    return row, jnp.where(column == LANES, LANES * lists.shape[0], here), numbers


def products(x: Array, lists: Int32[Array, "tiles chunks 6 n"]) -> Float32[Array, "M columns"]:
    """x times the listed blocks."""
    row, column, numbers = numbers_of(lists)
    rows = row[..., None, :] + jnp.arange(BLOCK)[None, None, :, None]
    terms = (x.astype(jnp.float32)[:, rows] * numbers[None]).sum(-2).reshape(x.shape[0], -1)
    zero = jnp.zeros((x.shape[0], LANES * lists.shape[0]), jnp.float32)
    return zero.at[:, column.reshape(-1)].add(terms, mode="drop")


def put_numbers(dense: Array, lists: Int32[Array, "tiles chunks 6 n"]) -> Any:
    """A decoded matrix with the listed blocks in their places."""
    row, column, numbers = numbers_of(lists)
    blocks = dense.reshape(-1, BLOCK, dense.shape[1])
    values = jnp.moveaxis(numbers, -2, -1).astype(dense.dtype)
    return blocks.at[row // BLOCK, :, column].set(values, mode="drop").reshape(dense.shape)
