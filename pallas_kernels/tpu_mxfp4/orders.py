"""The order in which rows of a chunk of MXFP4 are packed.

Block t of four is in byte t of what words unpack to, two registers of bytes for each of the two
registers of words, g, of a chunk. In sublane i of the first (h = 0) or second of these is

    native words   row 32 t + 16 g + 8 h + i of the chunk: packed row 64 g + 32 h + 4 i + t
    others         row 32 t + 16 g + 2 i + h
"""

from __future__ import annotations

from jaxtyping import Array, Shaped

CHUNK, BLOCK = 128, 32
LOGICAL = {0: (4, 2, 8, 2), 1: (4, 2, 2, 8)}  # by `native`: t, g, and i and h, or h and i
ORDERS = {0: (1, 3, 2, 0), 1: (1, 2, 3, 0)}  # g, h, i, t, of these axes


def ordered(rows: Shaped[Array, "rows columns"], native: int) -> Shaped[Array, "rows columns"]:
    """Rows in the order of words."""
    chunks = rows.reshape(-1, *LOGICAL[native], rows.shape[-1])
    order = (1 + axis for axis in ORDERS[native])
    return chunks.transpose(0, *order, 5).reshape(rows.shape)


def restored(rows: Shaped[Array, "rows columns"], native: int) -> Shaped[Array, "rows columns"]:
    """Rows in their own order."""
    order = ORDERS[native]
    chunks = rows.reshape(-1, *(LOGICAL[native][axis] for axis in order), rows.shape[-1])
    back = (1 + order.index(axis) for axis in range(4))
    return chunks.transpose(0, *back, 5).reshape(rows.shape)


def ordered_columns(x: Shaped[Array, "M K"], native: int) -> Shaped[Array, "M K"]:
    """Columns of a left operand in the order of words."""
    chunks = x.reshape(x.shape[0], -1, *LOGICAL[native])
    order = (2 + axis for axis in ORDERS[native])
    return chunks.transpose(0, 1, *order).reshape(x.shape)
