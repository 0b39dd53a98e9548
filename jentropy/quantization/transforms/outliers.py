"""The largest weights, or those that matter most, apart in 16 bits; the rest is clamped.

Clamp and sparse remainder: R. Wang et al., Optimizing large language model training using FP4
quantization, 2025. By salience: Y. Shang et al., PB-LLM: partially binarized large language models,
2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from jentropy.formats import BF16, ElementFormat, Step
from jentropy.quantization.statistics import Statistics

from . import kept
from .transform import Transform, Transformed

WIDEST = (1 << 16) - 1  # gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Outliers(Transform):
    """Some of the weights apart.

    Attributes:
      share: of the weights.
      by_loss: the largest w^2 E[x^2] rather than the largest |w|.
      element: of what they are kept in, a float of 16 or 8 bits.
      clamped: whether what is quantised has, in their places, the bound that they lie beyond; else
        zeros.
    """

    share: float = 0.01
    by_loss: bool = False
    element: ElementFormat = BF16
    clamped: bool = True

    def forward(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        key: Any,
        prefix: str,
    ) -> Transformed:
        """See `Transform`."""
        size = jnp.square(weight)
        if self.by_loss:
            size = size * statistics.diagonal[None, :]
        flat = np.asarray(weight).reshape(-1)
        count = max(1, round(self.share * flat.size))
        places = np.sort(np.argpartition(-np.asarray(size).reshape(-1), count - 1)[:count])
        places = _reachable(places)
        gaps = np.diff(places, prepend=0)
        one, gap_codes = kept.whole(prefix + "gaps", gaps, jnp.uint16)
        other, value_codes, _ = kept.numbers(
            prefix + "values", jnp.asarray(flat[places]), self.element
        )
        inside = np.delete(np.abs(flat), places)
        bound = float(inside.max(initial=0.0)) if self.clamped else 0.0
        left = flat.copy()
        left[places] = np.clip(flat[places], -bound, bound)
        return Transformed(
            weight=jnp.asarray(left.reshape(weight.shape)),
            statistics=statistics,
            step=Step(name="outliers", arrays=(one, other)),
            codes={one.name: gap_codes, other.name: value_codes},
        )


def _reachable(places: np.ndarray) -> np.ndarray:
    """Places, and those between that gaps of 16 bits need."""
    gaps = np.diff(places, prepend=0)
    if gaps.max(initial=0) <= WIDEST:
        return places
    more = [
        np.arange(place - gap + WIDEST, place, WIDEST)
        for place, gap in zip(places[gaps > WIDEST], gaps[gaps > WIDEST], strict=True)
    ]
    return np.union1d(places, np.concatenate(more))
