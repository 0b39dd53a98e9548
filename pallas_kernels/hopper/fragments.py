"""The order in which Hopper's tensor cores take a matrix from registers.

WGMMA multiplies 64 rows by 16 columns at a time. The 128 threads of a warpgroup hold them in four
registers each, two neighbouring columns to a register (the even one in the low half): register
2 c + r of thread 32 w + 4 g + q has row 16 w + 8 r + g and columns 8 c + 2 q, 8 c + 2 q + 1.
Place 4 thread + register, from 0 to 511, names a register of a *fragment* of 64 by 16; a *block* is
64 by 64, four fragments. Words that lie in this order in memory are what the threads need, 16 bytes
each (PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", matrix A).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

ROWS, COLUMNS = 64, 16  # of a fragment
BLOCK = 64  # columns of a block
PLACES = 512  # registers of a fragment
THREADS, REGISTERS = 128, 4

# Axes of rows and columns of a block, from the slowest: warp, r, g; fragment, c, q, half.
_SPLIT = (4, 2, 8), (4, 2, 4, 2)


def arrange(
    matrix: Shaped[Array, "rows columns"],
) -> Shaped[Array, "row_blocks column_blocks 4 512 2"]:
    """Numbers of whole blocks by fragment, place and half."""
    rows, columns = matrix.shape
    axes = matrix.reshape(rows // ROWS, *_SPLIT[0], columns // BLOCK, *_SPLIT[1])
    # row block, warp, r, g, column block, fragment, c, q, half
    axes = axes.transpose(0, 4, 5, 1, 3, 7, 6, 2, 8)
    return axes.reshape(rows // ROWS, columns // BLOCK, 4, PLACES, 2)


def restore(
    arranged: Shaped[Array, "row_blocks column_blocks fragments 512 2"],
) -> Shaped[Array, "rows columns"]:
    """The inverse of `arrange`; of blocks of any number of fragments."""
    high, wide, fragments = arranged.shape[:3]
    axes = arranged.reshape(high, wide, fragments, 4, 8, 4, 2, 2, 2)
    axes = axes.transpose(0, 3, 7, 4, 1, 2, 6, 5, 8)
    return axes.reshape(high * ROWS, wide * fragments * COLUMNS)


def place_of(row: Any, column: Any) -> Any:
    """Place of a register by row and column of its fragment, both integers or arrays."""
    thread = row // 16 * 32 + row % 8 * 4 + column % 8 // 2
    return thread * REGISTERS + column // 8 * 2 + row % 16 // 8


def row_of(place: Any) -> Any:
    """Row of a place in its fragment."""
    thread, register = place // REGISTERS, place % REGISTERS
    return thread // 32 * 16 + register % 2 * 8 + thread % 32 // 4


def column_of(place: Any) -> Any:
    """Column of a place's low half in its fragment."""
    thread, register = place // REGISTERS, place % REGISTERS
    return register // 2 * 8 + thread % 4 * 2


# Places of each row in a fragment, in the order of their columns.
PLACES_OF_ROWS = place_of(np.arange(ROWS)[:, None], np.arange(0, COLUMNS, 2))


def pairs(numbers: Shaped[Array, "*shape 2"]) -> Shaped[Array, "*shape"]:
    """Halves of 16 bits to uint32."""
    wide = numbers.astype(jnp.uint32)
    return wide[..., 0] | wide[..., 1] << 16


def halves(pairs: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape 2"]:
    """The inverse of `pairs`, uint16."""
    return jnp.stack([pairs & 0xFFFF, pairs >> 16], axis=-1).astype(jnp.uint16)
