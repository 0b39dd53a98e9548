"""Up or down by gradient descent on the error of outputs: AdaRound.

A weight lies between two numbers, h from the lower one; h is a rectified sigmoid, which a penalty
drives to 0 or 1 as steps go on. Rows are learned by themselves, and one that is no better than its
nearest numbers keeps those.

References:
  Nagel et al. 2020, Up or down? Adaptive rounding for post-training quantization, arXiv 2004.10568.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt

from jentropy.quantization.adam import minimized
from jentropy.quantization.grid import Grid
from jentropy.quantization.statistics import Statistics

from . import levels
from .nearest import Nearest
from .rounding import Rounding

STRETCH = 1.2  # of the sigmoid, about its middle
SHARPEST, BLUNTEST = 2.0, 20.0  # exponents of the penalty, from the first step to the last
WARM = 0.2  # part of the steps that have no penalty


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned(Rounding):
    """AdaRound.

    Example:
      >>> Learned(steps=50).penalty
      3.0
    """

    steps: int = 300
    rate: float = 0.1
    penalty: float = 3.0  # of a weight that is undecided, in units of the mean error at the start

    def round(
        self,
        weight: Float32[Array, "rows columns"],
        grid: Grid,
        statistics: Statistics,
        mask: Bool[Array, "rows columns"] | None,
        key: Any,
    ) -> UInt[Array, "rows columns"]:
        """See `Rounding`."""
        if statistics.hessian is None:
            return Nearest().round(weight, grid, statistics, mask, key)
        stay = jnp.ones(weight.shape, bool) if mask is None else mask
        places = _places(
            weight,
            grid,
            jnp.asarray(statistics.hessian, jnp.float32),
            stay,
            steps=self.steps,
            rate=self.rate,
            penalty=self.penalty,
        )
        return levels.codes(places, grid.number_format.element)


@partial(jax.jit, static_argnames=("steps", "rate", "penalty"))
def _places(
    weight: Float32[Array, "rows columns"],
    grid: Grid,
    hessian: Float32[Array, "columns columns"],
    stay: Bool[Array, "rows columns"],
    *,
    steps: int,
    rate: float,
    penalty: float,
) -> Int32[Array, "rows columns"]:
    element = grid.number_format.element
    unit, zero = grid.affine(weight.shape)
    target = jnp.where(stay, weight / unit, 0.0) + zero
    near = levels.nearest(target, element)
    last = levels.levels_of(element)[0].size - 1
    low = jnp.clip(near - (levels.numbers(near, element) > target), 0, max(0, last - 1))
    high = jnp.minimum(low + 1, last)
    down, up = ((levels.numbers(p, element) - zero) * unit for p in (low, high))
    width = jnp.where(up > down, up - down, 1)
    part = jnp.clip((jnp.where(stay, weight, 0.0) - down) / width, 0.01, 0.99)

    def errors(numbers: Array) -> Float32[Array, " rows"]:
        error = numbers - weight
        return ((error @ hessian) * error).sum(1)

    def is_up(at: Array) -> Array:
        return jnp.clip((jax.nn.sigmoid(at) - 0.5) * STRETCH + 0.5, 0.0, 1.0)

    nearest = (levels.numbers(near, element) - zero) * unit
    scale = jnp.maximum(errors(nearest).sum(), 1e-30)

    def loss(at: Array, progress: Array) -> Array:
        h = is_up(at)
        lost = errors(down + h * (up - down)).sum() / scale
        sharpness = BLUNTEST + (SHARPEST - BLUNTEST) * progress
        undecided = (1 - jnp.abs(2 * h - 1) ** sharpness).mean()
        return lost + jnp.where(progress < WARM, 0.0, penalty) * undecided

    squeezed = (part - 0.5) / STRETCH + 0.5
    start = jnp.log(squeezed / (1 - squeezed))
    found = jnp.where(is_up(minimized(loss, start, steps, rate)) >= 0.5, high, low)
    found = jnp.where(stay, found, near)
    better = errors((levels.numbers(found, element) - zero) * unit) < errors(nearest)
    return jnp.where(better[:, None], found, near)
