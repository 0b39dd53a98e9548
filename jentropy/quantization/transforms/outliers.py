"""The largest weights, or those that matter most, apart in 16 or 8 bits; the rest is clamped.

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
from jentropy.quantization.minifloats import minifloat_element
from jentropy.quantization.statistics import Statistics

from . import kept
from .transform import Transform, Transformed

MANY = 0.05  # of the weights, so that gaps of a byte nearly always do


@dataclass(frozen=True, slots=True, kw_only=True)
class Outliers(Transform):
    """Some of the weights apart.

    Attributes:
      share: of the weights.
      by_loss: the largest w^2 E[x^2] rather than the largest |w|.
      exponent: bits of the floats of eight that they are kept in, whose bias is such that the
        largest has one; 0: they are in BF16.
      clamped: whether what is quantised has, in their places, the bound that they lie beyond; else
        zeros.
    """

    share: float = 0.01
    by_loss: bool = False
    exponent: int = 0
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
        dtype = np.dtype(np.uint8 if self.share >= MANY else np.uint16)
        places = _reachable(places, (1 << 8 * dtype.itemsize) - 1)
        gaps = np.diff(places, prepend=0)
        one, gap_codes = kept.whole(prefix + "gaps", gaps, dtype)
        values = jnp.asarray(flat[places])
        element = fitting(values, self.exponent) if self.exponent else BF16
        other, value_codes, _ = kept.numbers(prefix + "values", values, element)
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


def fitting(values: Float32[Array, " outliers"], exponent: int) -> ElementFormat:
    """A float of eight bits that has the largest of some numbers.

    Example:
      >>> fitting(jnp.float32([0.3, -0.01]), 3).name
      'FP8_E3M4_BIAS9'
    """
    _, power = np.frexp(np.abs(np.asarray(values)).max(initial=0.0))
    last = (1 << exponent) - 1
    return minifloat_element(exponent, 7 - exponent, int(np.clip(last + 1 - power, 0, 127)))


def _reachable(places: np.ndarray, widest: int) -> np.ndarray:
    """Places, and those between that gaps of a width need."""
    gaps = np.diff(places, prepend=0)
    if gaps.max(initial=0) <= widest:
        return places
    more = [
        np.arange(place - gap + widest, place, widest)
        for place, gap in zip(places[gaps > widest], gaps[gaps > widest], strict=True)
    ]
    return np.union1d(places, np.concatenate(more))
