"""Tiles that are cut: who is done last with a part of one adds all of them, in their order.

A thread has the same numbers of a tile in each block of threads that has a part of it: parts lie
in memory as threads hold them, and warps count for themselves, each block of 64 rows apart. None
waits for another. Counts are zeros to begin with and zeros again in the end: one constant of a
program serves all its kernels, which run one after the other (XLA's command buffers too, but for
their mode CONCURRENT, which nobody gets who does not ask for it).

Of a tile with several parts a block has the first one in its last steps, or another one in its
first steps: two places to a block are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from . import fragments, mosaic
from .plan import HopperPlan

PLACES = 2  # of parts, to a block of threads
WARPS = 4  # of a warpgroup


def counts(plan: HopperPlan) -> Array:
    """Zeros, by the block of threads that has a tile's first part; then one that is none.

    XLA would fill an array of equal numbers anew for each kernel, which takes a launch.
    """
    made = np.zeros((plan.blocks + 1, plan.tile_n // fragments.ROWS, WARPS), np.int32)
    made[-1] = 1
    return jnp.asarray(made)


def memory(plan: HopperPlan) -> jax.ShapeDtypeStruct:
    """Of parts."""
    registers = fragments.ROWS * plan.m // fragments.THREADS // 2
    row_blocks = plan.tile_n // fragments.ROWS
    shape = plan.blocks, PLACES, row_blocks, registers, fragments.THREADS, 2
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def add(
    product: Array,
    first: Any,
    part: Any,
    count: Any,
    row_block: Any,
    counts: Any,
    memory: Any,
    store: Callable[[Array], None],
) -> None:
    """Stores a tile's product, if this warp is the last that has a part of it.

    Args:
      product: the part [64, M].
      first: block of threads that has the first part; the others follow.
      part, count: which one this is, of how many; at least two.
      row_block: of the tile.
      store: (sum) -> None.
    """

    def place(part: Any) -> Any:
        return memory.at[first + part, jnp.where(part == 0, 0, 1), row_block]

    mosaic.store_held(place(part), product)
    mine = counts.at[first, row_block]
    before = mosaic.arrive(mine)

    @pl.when(before == count - 1)
    def _() -> None:
        mosaic.reset(mine)

        def load(part: Any) -> Array:
            return mosaic.load_held(place(part), product.shape)

        begin = load(np.int32(0))
        store(lax.fori_loop(np.int32(1), count, lambda p, total: total + load(p), begin))
