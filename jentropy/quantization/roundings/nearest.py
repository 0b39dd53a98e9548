"""Every weight to the number nearest to it: RTN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Bool, Float32, UInt

from jentropy.quantization.grid import Grid
from jentropy.quantization.statistics import Statistics

from .rounding import Rounding, masked


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest(Rounding):
    """Round to nearest, ties to even."""

    def round(
        self,
        weight: Float32[Array, "rows columns"],
        grid: Grid,
        statistics: Statistics,
        mask: Bool[Array, "rows columns"] | None,
        key: Any,
    ) -> UInt[Array, "rows columns"]:
        """See `Rounding`."""
        return _codes(masked(weight, mask), grid)


@jax.jit
def _codes(weight: Float32[Array, "rows columns"], grid: Grid) -> UInt[Array, "rows columns"]:
    return grid.encode(weight)
