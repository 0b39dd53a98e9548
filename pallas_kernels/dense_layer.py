"""Layers of dense stacks: what is read of them in a loop is no more than what the loop takes.

XLA for CPU widens an array of a narrow dtype before a loop that takes parts of it, all layers and
all experts of a model. It cannot where the array comes out of a barrier together with the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Shaped


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLayer:
    """One layer's dense matrices, which lie in the stack of all layers.

    Attributes:
      array: [layers, matrices, rows, columns].
      index: int32[]: which layer it is.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = DenseLayer(array=jnp.ones((2, 3, 4, 5)), index=jnp.int32(1))
      >>> layer.shape, layer[2].shape
      ((3, 4, 5), (4, 5))
    """

    array: Any
    index: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the layer's matrices."""
        return tuple(self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers."""
        return np.dtype(self.array.dtype)

    def __getitem__(self, at: Int[Array, ""] | int) -> Array:
        """One of the matrices."""
        return part_of(self.array, self.index, at)


def layer_of(stack: Shaped[Array, "*stack"], at: Int[Array, ""]) -> Array | DenseLayer:
    """One layer of a stack; where it has several matrices, these stay where they are.

    Args:
      stack: [layers, ...].
      at: which one.

    Returns:
      The layer's array, or a `DenseLayer`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer_of(jnp.ones((2, 4, 5)), jnp.int32(1)).shape
      (4, 5)
    """
    return part_of(stack, at) if stack.ndim < 4 else DenseLayer(array=stack, index=at)


def part_of(array: Shaped[Array, "*shape"], *index: Int[Array, ""] | int) -> Shaped[Array, "*part"]:
    """array[index], and nothing else of the array is read.

    The part is behind a barrier: products are the same bits as those of weights that are decoded,
    whatever XLA would make of the slice and a product together.

    Args:
      array: of any shape.
      index: for its first axes.

    Returns:
      A copy of the part.

    Example:
      >>> import jax.numpy as jnp
      >>> part_of(jnp.arange(6).reshape(3, 2), jnp.int32(2)).tolist()
      [4, 5]
    """
    array, index = jax.lax.optimization_barrier((array, index))
    for at in index:
        array = jax.lax.dynamic_index_in_dim(array, at, keepdims=False)
    return jax.lax.optimization_barrier(array)
