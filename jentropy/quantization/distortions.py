"""What is lost: squared errors of weights, and of the outputs that they make.

The loss of the model itself, KL and NLL, is a callable that `models` gives (`quantizing.Loss`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from .statistics import Statistics


@jax.jit
def relative(
    weight: Float32[Array, "*stack rows columns"], decoded: Float32[Array, "*stack rows columns"]
) -> Float32[Array, ""]:
    """Squared error over squared weight: relMSE.

    Args:
      weight: as it was.
      decoded: as it became.

    Example:
      >>> float(relative(jnp.ones((1, 4)), jnp.full((1, 4), 1.5)))
      0.25
    """
    power = jnp.square(weight).sum()
    return jnp.square(decoded - weight).sum() / jnp.where(power == 0, 1, power)


@jax.jit
def weighted(
    weight: Float32[Array, "rows columns"],
    decoded: Float32[Array, "rows columns"],
    statistics: Statistics,
) -> Float32[Array, ""]:
    """Mean squared error of an output, summed over outputs: tr(E H E^T), E being the error.

    Args:
      weight: as it was.
      decoded: as it became.
      statistics: of the inputs.

    Example:
      >>> told = Statistics.identity(4)
      >>> float(weighted(jnp.ones((1, 4)), jnp.full((1, 4), 1.5), told))
      1.0
    """
    error = decoded - weight
    if statistics.hessian is None:
        return jnp.square(error).sum()
    return jnp.vdot(error @ jnp.asarray(statistics.hessian, jnp.float32), error)
