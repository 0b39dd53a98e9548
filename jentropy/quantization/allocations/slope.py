"""One slope for all tensors: bits go where they lower the loss most (reverse water-filling).

An error of a weight costs its sensitivity (mean squared gradient of an output times E[x^2]) times
the square of its step, and a bit less doubles the step wherever it is taken: so the loss is least
where sensitivity times squared step is the same everywhere.

References:
  Cover, Thomas, Elements of Information Theory, section 10.3; BAQ, arXiv 2506.05664; HAWQ-V2,
  arXiv 1911.03852.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jentropy.quantization.recipe import Allocation, Recipe, Share
from jentropy.quantization.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope(Allocation):
    """Steps in proportion to 1 / sqrt(sensitivity).

    Example:
      >>> Slope().is_settled
      False
    """

    def shares(
        self,
        weights: Mapping[str, Any],
        recipe: Recipe,
        statistics: Mapping[str, Statistics],
        bits: float | None,
        loss: Callable[[Mapping[str, Any]], float] | None,
    ) -> dict[str, Share]:
        """See `Allocation`."""
        steps = {}
        for name, weight in weights.items():
            rms = float(jnp.sqrt(jnp.square(jnp.asarray(weight).astype(jnp.float32)).mean()))
            sensitivity = float(jnp.mean(statistics[name].sensitivity))
            steps[name] = 1 / max(rms * sensitivity**0.5, 1e-30)
        middle = np.exp(np.mean(np.log(list(steps.values())))) if steps else 1.0
        return {
            name: Share(recipe=recipe, factor=float(step / middle)) for name, step in steps.items()
        }
