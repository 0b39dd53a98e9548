"""Up or down at random, so that every weight is right on average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, UInt

from jentropy.quantization.grid import Grid
from jentropy.quantization.statistics import Statistics

from .rounding import Rounding, masked


@dataclass(frozen=True, slots=True, kw_only=True)
class Stochastic(Rounding):
    """Each of the two numbers around a weight with the probability that makes the mean right.

    Example:
      >>> Stochastic()
      Stochastic()
    """

    def round(
        self,
        weight: Float32[Array, "rows columns"],
        grid: Grid,
        statistics: Statistics,
        mask: Bool[Array, "rows columns"] | None,
        key: Any,
    ) -> UInt[Array, "rows columns"]:
        """See `Rounding`."""
        return _codes(masked(weight, mask), grid, key)


@jax.jit
def _codes(
    weight: Float32[Array, "rows columns"], grid: Grid, key: Any
) -> UInt[Array, "rows columns"]:
    return grid.encode(weight, jax.random.bits(key, weight.shape, jnp.uint32))
