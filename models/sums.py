"""Sums along the last axis that do not depend on how many there are beside each other.

XLA for CPU gives large reductions to a library which adds in another order than its own loops, and
over a mesh a device has fewer rows than one device alone has. What the library does not know it
leaves: on a CPU the reductions here are written so.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
@jax.jit
def summed(x: Float[Array, "*rows width"]) -> Float[Array, "*rows"]:
    """Sums of rows; on a CPU one number after the other.

    Example:
      >>> summed(jnp.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
      [6.0, 15.0]
    """
    return jax.lax.platform_dependent(x, cpu=_added, default=lambda x: x.sum(-1))


@summed.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return summed(*primals), tangents[0].sum(-1)


@jax.jit
def greatest(x: Float[Array, "*rows width"]) -> Float[Array, "*rows"]:
    """The greatest of each row, without a derivative.

    Example:
      >>> greatest(jnp.asarray([[1.0, 3.0, 2.0]])).tolist()
      [3.0]
    """
    x = jax.lax.stop_gradient(x)
    return jax.lax.platform_dependent(x, cpu=_greater, default=lambda x: x.max(-1))


def softmax(x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """exp(x) / sum(exp(x)) of rows that have a finite number.

    Example:
      >>> softmax(jnp.zeros((1, 4))).tolist()
      [[0.25, 0.25, 0.25, 0.25]]
    """
    powers = jnp.exp(x - greatest(x)[..., None])
    return powers / summed(powers)[..., None]


def _added(x: Array) -> Array:
    def add(a: Array, b: Array) -> Array:
        return jax.lax.select(a != a, a, a + b)

    return jax.lax.reduce(x, jnp.zeros((), x.dtype), add, (x.ndim - 1,))


def _greater(x: Array) -> Array:
    def greater(a: Array, b: Array) -> Array:
        return jax.lax.select(a > b, a, b)

    return jax.lax.reduce(x, jnp.full((), -jnp.inf, x.dtype), greater, (x.ndim - 1,))
