"""Padding of matrices to tiles of the TPU's registers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jentropy.pallas_kernels.resident import ResidentTensor

LANES, SUBLANES = 128, 8  # columns and rows of a vector register of 32 bits


def ceil_to(size: int, multiple: int) -> int:
    """The least multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def choose_tile(size: int, tiles: Sequence[int]) -> int:
    """The tile that pads an axis least; the first of equals."""
    return min(tiles, key=lambda tile: ceil_to(size, tile))


def places(tile: np.ndarray) -> np.ndarray:
    """What number each item has among those of its tile, in their order."""
    order = np.argsort(tile, kind="stable")
    per_tile = np.bincount(tile)
    place = np.empty(tile.size, np.int64)
    place[order] = np.arange(tile.size) - np.repeat(np.cumsum(per_tile) - per_tile, per_tile)
    return place


def extent(weight: ResidentTensor, rows: int, columns: int, tile_rows: int) -> tuple[int, int]:
    """Rows and columns of what a layout's arrays hold.

    They are the logical matrix's, unless the arrays (of `rows` by `columns`, padded) are a part of
    one that `shard_map` cut out: then they are the part's own.
    """
    own = weight.logical[::-1] if weight.turned else weight.logical
    whole = ceil_to(own[0], tile_rows), ceil_to(own[1], LANES)
    return (
        own[0] if rows == whole[0] else rows,
        own[1] if columns == whole[1] else columns,
    )
