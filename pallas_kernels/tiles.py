"""Padding of matrices to tiles, and lists by tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

LANES, SUBLANES = 128, 8  # columns and rows of a TPU's vector register of 32 bits


def ceil_to(size: int, multiple: int) -> int:
    """The least multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def choose_tile(size: int, tiles: Sequence[int]) -> int:
    """The tile that pads an axis least; the first of equals."""
    return min(tiles, key=lambda tile: ceil_to(size, tile))


def places(tile: Int[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    """What number each item has among those of its tile, in their order."""
    order = np.argsort(tile, kind="stable")
    per_tile = np.bincount(tile)
    place = np.empty(tile.size, np.int64)
    place[order] = np.arange(tile.size) - np.repeat(np.cumsum(per_tile) - per_tile, per_tile)
    return place
