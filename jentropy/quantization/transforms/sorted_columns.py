"""Columns by the power of their inputs, the greatest first: act-order, or blocks of a kind."""

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
class SortedColumns(Transform):
    """Columns in falling order of E[x^2], or of the largest |x|.

    Attributes:
      by_largest: which of the two.
    """

    by_largest: bool = False

    def forward(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        key: Any,
        prefix: str,
    ) -> Transformed:
        """See `Transform`."""
        power = statistics.largest if self.by_largest else statistics.diagonal
        order = jnp.argsort(-power, stable=True)
        columns = weight.shape[1]
        places = jnp.argsort(order)
        own, codes = kept.whole(prefix + "places", places, kept.places_dtype(columns))
        return Transformed(
            weight=weight[:, order],
            statistics=reordered(statistics, order),
            step=Step(name="permutation", arrays=(own,)),
            codes={own.name: codes},
        )


def reordered(statistics: Statistics, order: Any) -> Statistics:
    """Of inputs in another order."""
    hessian = statistics.hessian
    hessian = None if hessian is None else jnp.asarray(hessian)[order][:, order]
    low, high = jnp.asarray(statistics.low)[order], jnp.asarray(statistics.high)[order]
    return replace(statistics, hessian=hessian, low=low, high=high)
