"""Products in plain JAX by blocks of rows of the weight, on CPU: what is decoded stays in cache.

A block is decoded to float32 and multiplied before the next one is. Dense weights of narrower
dtypes, which XLA would widen as a whole, are multiplied by the same blocks: so the sums are the
same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

WEIGHTS = 1 << 18  # of a block at the most: a megabyte in float32
TILE_OF_ONE, TILE = 8, 64  # outputs, of products with one row of x and with more
LEAST = WEIGHTS >> 3  # smaller blocks do not pay; a matrix without larger ones is one block
Block = Callable[[Array], Float32[Array, "rows columns"]]  # of a number, int32[]


def count(rows: int, columns: int) -> int:
    """Blocks of a matrix, all of as many rows.

    Example:
      >>> count(4096, 4096), count(512, 512), count(8191, 4096)
      (64, 1, 1)
    """
    most = max(1, WEIGHTS // max(1, columns))
    fit = (n for n in range(-(-rows // most), rows + 1) if rows % n == 0)
    blocks = next(fit, 1)
    return blocks if rows * columns >= blocks * LEAST else 1


def multiply(
    x: Float32[Array, "*batch K"], blocks: int, block: Block, *, transpose_w: bool
) -> Float32[Array, "*batch N"]:
    """x times a matrix.

    Args:
      blocks: how many there are.
      block: gives the rows of one.
      transpose_w: whether the product sums over columns of the matrix; else over its rows.
    """

    if transpose_w:
        blocks, block = _in_tiles(blocks, block, least(x))

    def product(x: Array, at: Array) -> Array:
        # The barrier keeps XLA from fusing the decode into the product, where sums may be others.
        w = block(at)
        outputs = w.shape[0 if transpose_w else 1]
        w = jax.lax.optimization_barrier(whole_tiles(w, least(x)) if transpose_w else w)
        y = jax.lax.dot_general(
            x,
            w,
            (((x.ndim - 1,), (1 if transpose_w else 0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        return y[..., :outputs]

    if blocks == 1:
        return product(x, jnp.int32(0))
    if transpose_w:
        outputs = jax.eval_shape(product, x, jnp.int32(0)).shape[-1]

        def put(at: Array, y: Array) -> Array:
            part, here = product(x, at), at * outputs
            return jax.lax.dynamic_update_slice_in_dim(
                y, part, here, axis=-1, allow_negative_indices=False
            )

        # Into their places: a stack of blocks would be transposed, and lie there twice.
        places = jnp.zeros((*x.shape[:-1], blocks * outputs))
        return jax.lax.fori_loop(np.int32(0), np.int32(blocks), put, places)
    each = jnp.arange(blocks, dtype=jnp.int32)
    parts = jnp.moveaxis(x.reshape(*x.shape[:-1], blocks, -1), -2, 0)
    first = product(parts[0], each[0])
    return jax.lax.scan(lambda y, each: (y + product(*each), None), first, (parts[1:], each[1:]))[0]


def least(x: Float[Array, "*batch K"]) -> int:
    """Rows of a weight whose multiples XLA's CPU backend multiplies with the same order of sums.

    Parts of a weight, over a mesh, so give the bits of the whole.
    """
    return TILE_OF_ONE if math.prod(x.shape[:-1]) == 1 else TILE


def whole_tiles(w: Float[Array, "rows columns"], tile: int) -> Float[Array, "more columns"]:
    """The matrix, filled up to whole tiles of rows."""
    missing = -w.shape[0] % tile
    return jnp.pad(w, ((0, missing), (0, 0))) if missing else w


def _in_tiles(blocks: int, block: Block, tile: int) -> tuple[int, Block]:
    """Larger blocks, of several, that are a tile at least."""
    high = jax.eval_shape(block, jax.ShapeDtypeStruct((), jnp.int32)).shape[0]
    several = (n for n in range(1, blocks + 1) if blocks % n == 0 and n * high >= tile)
    together = next(several, blocks)
    if together == 1:
        return blocks, block

    def larger(at: Array) -> Array:
        return jnp.concatenate([block(together * at + i) for i in range(together)])

    return blocks // together, larger


def of_dense(w: Float[Array, "rows columns"]) -> tuple[int, Block]:
    """The blocks of a dense matrix of a dtype narrower than float32.

    Its bits are what is taken from it: XLA's CPU backend widens whole floats before a loop over
    parts of them.
    """
    blocks = count(*w.shape)
    if blocks == 1:
        return 1, lambda _: w.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(w, f"uint{8 * w.dtype.itemsize}")
    bits = bits.reshape(blocks, -1, w.shape[1])

    def block(at: Array) -> Array:
        part = jax.lax.dynamic_index_in_dim(bits, at, keepdims=False, allow_negative_indices=False)
        return jax.lax.bitcast_convert_type(part, w.dtype).astype(jnp.float32)

    return blocks, block


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def multiply_dense(
    x: Float32[Array, "*batch K"], w: Float[Array, "rows columns"], transpose_w: bool
) -> Float32[Array, "*batch N"]:
    """x times a dense matrix; differentiable in both."""
    return multiply(x, *of_dense(w), transpose_w=transpose_w)


@multiply_dense.defjvp
def _(transpose_w: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, w), (of_x, of_w) = primals, tangents
    blocks = of_dense(w)
    run = partial(multiply, transpose_w=transpose_w)
    contract = (((x.ndim - 1,), (1 if transpose_w else 0,)), ((), ()))
    more = jax.lax.dot_general(
        x, of_w.astype(jnp.float32), contract, precision=jax.lax.Precision.HIGHEST
    )
    return run(x, *blocks), run(of_x, *blocks) + more


def is_narrow(dtype: Any) -> bool:
    """Whether a float is widened to float32 for products on CPU."""
    return jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize < 4
