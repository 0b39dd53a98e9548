"""Inputs whose ends lie evenly around 0: Outlier Suppression+'s shift (Wei et al., 2023).

The weight stays as it is. Who rounds inputs subtracts the shift from them before, and adds its
product with the weight to what comes out, as a bias would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32

from jentropy.formats import Step
from jentropy.quantization.statistics import Statistics

from . import kept
from .transform import Transform, Transformed


@dataclass(frozen=True, slots=True, kw_only=True)
class Centred(Transform):
    """The middle of the ends of every input is subtracted from it."""

    def forward(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        key: Any,
        prefix: str,
    ) -> Transformed:
        """See `Transform`."""
        middle = (jnp.asarray(statistics.low) + jnp.asarray(statistics.high)) / 2
        own, codes, shift = kept.numbers(prefix + "shift", middle)
        moved = replace(statistics, low=statistics.low - shift, high=statistics.high - shift)
        step = Step(name="shift", arrays=(own,))
        return Transformed(weight=weight, statistics=moved, step=step, codes={own.name: codes})
