"""Gradient descent for roundings and scales that are learned: Adam, inside of a program.

References:
  Kingma, Ba 2014, arXiv 1412.6980.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

DECAY, DECAY_OF_SQUARES, EPSILON = 0.9, 0.999, 1e-8


def minimized(
    loss: Callable[[Array, Array], Array], start: Float32[Array, "*shape"], steps: int, rate: float
) -> Float32[Array, "*shape"]:
    """Where a loss is low.

    Args:
      loss: (where, progress from 0 to 1) -> float32.
      start: where to begin.
      steps: how many.
      rate: of learning.

    Example:
      >>> at = minimized(lambda x, _: jnp.square(x - 3).sum(), jnp.zeros(2), 300, 0.1)
      >>> bool(jnp.abs(at - 3).max() < 0.1)
      True
    """

    def step(
        state: tuple[Array, Array, Array], i: Array
    ) -> tuple[tuple[Array, Array, Array], None]:
        at, mean, square = state
        gradient = jax.grad(loss)(at, i / steps)
        mean = DECAY * mean + (1 - DECAY) * gradient
        square = DECAY_OF_SQUARES * square + (1 - DECAY_OF_SQUARES) * jnp.square(gradient)
        unbiased = mean / (1 - DECAY ** (i + 1))
        spread = jnp.sqrt(square / (1 - DECAY_OF_SQUARES ** (i + 1)))
        return (at - rate * unbiased / (spread + EPSILON), mean, square), None

    zeros = jnp.zeros_like(start)
    (at, _, _), _ = jax.lax.scan(step, (start, zeros, zeros), jnp.arange(steps, dtype=jnp.float32))
    return at
