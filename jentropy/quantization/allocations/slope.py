"""One slope: every tensor's steps are such that a bit more saves as much loss in each of them.

With losses s d^2 / 12 a weight, d being the step and s the sensitivity, and log2(1 / d) bits more
or less, that is d in inverse proportion to sqrt(s): reverse water-filling. What rate that comes to
is left to the one knob.

References:
  BAQ, arXiv 2506.05664; Cover and Thomas, Elements of Information Theory, section 10.3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jentropy.quantization import sensitivities
from jentropy.quantization.recipe import Allocation, Recipe, Share
from jentropy.quantization.statistics import Statistics

LEAST = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope(Allocation):
    """Steps in inverse proportion to the square root of a sensitivity.

    Example:
      >>> Slope().is_settled
      False
    """

    sensitivity: str = "fisher"  # in `SENSITIVITIES`

    def shares(
        self,
        weights: Mapping[str, Any],
        recipe: Recipe,
        statistics: Mapping[str, Statistics],
        bits: float | None,
        loss: Callable[[Mapping[str, Any]], float] | None,
    ) -> dict[str, Share]:
        """See `Allocation`. A recipe's own steps are taken to be in proportion to the weights."""
        found = sensitivities.measured(self.sensitivity, weights, recipe, statistics, loss)
        logs, sizes = {}, {}
        for name, weight in weights.items():
            numbers = np.asarray(weight, np.float32)
            power = float(np.square(numbers, dtype=np.float64).mean()) if numbers.size else 0.0
            logs[name] = -0.5 * math.log(found[name] * max(power, LEAST))
            sizes[name] = numbers.size
        total = max(1, sum(sizes.values()))
        mean = sum(logs[name] * sizes[name] for name in logs) / total
        return {
            name: Share(recipe=recipe, factor=math.exp(log - mean)) for name, log in logs.items()
        }
