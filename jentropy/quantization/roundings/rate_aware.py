"""The number that costs least: its error, and the bits that its code takes.

Bits are those of an entropy coder that knows how often codes occur; codes and bits are found in
turns. It is entropy-coded scalar quantisation ("ECSQ") on a uniform step.

References:
  Chou, Lookabaugh, Gray 1989, Entropy-constrained vector quantization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt

from jentropy.quantization.grid import Grid
from jentropy.quantization.statistics import Statistics

from . import levels
from .rounding import Rounding, masked

TURNS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RateAware(Rounding):
    """Least error, weighted by E[x^2], plus slope times bits.

    Example:
      >>> RateAware().slope
      1.0
    """

    slope: float = 1.0  # what a bit costs: 1 is what it is worth at high rate

    def round(
        self,
        weight: Float32[Array, "rows columns"],
        grid: Grid,
        statistics: Statistics,
        mask: Bool[Array, "rows columns"] | None,
        key: Any,
    ) -> UInt[Array, "rows columns"]:
        """See `Rounding`."""
        places = _places(weight, grid, statistics.diagonal, jnp.float32(self.slope), mask)
        return levels.codes(places, grid.number_format.element)


@jax.jit
def _places(
    weight: Float32[Array, "rows columns"],
    grid: Grid,
    power: Float32[Array, " columns"],
    slope: Float32[Array, ""],
    mask: Bool[Array, "rows columns"] | None,
) -> Int32[Array, "rows columns"]:
    element = grid.number_format.element
    unit, zero = grid.affine(weight.shape)
    target = masked(weight, mask) / unit + zero
    # At high rate a bit is worth 2 ln 2 of the error, which is a twelfth of a squared unit.
    worth = slope * (2 * np.log(2) / 12) * jnp.square(unit).mean()
    price = worth / (jnp.square(unit) * (power / power.mean())[None, :] + 1e-30)
    first = places = levels.nearest(target, element)
    for _ in range(TURNS):
        bits = levels.code_bits(places, element)
        best = jnp.full(weight.shape, jnp.inf)
        for step in (0, -1, 1):
            place = jnp.clip(first + step, 0, bits.size - 1)
            error = jnp.square(levels.numbers(place, element) - target)
            cost = error + price * bits[place]
            places = jnp.where(cost < best, place, places)
            best = jnp.minimum(cost, best)
    return places if mask is None else jnp.where(mask, places, first)
