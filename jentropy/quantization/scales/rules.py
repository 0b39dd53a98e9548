"""The rules of `formats.quantize`: a block's largest number is the element's largest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float32, UInt

from jentropy.formats import Format, fitting
from jentropy.quantization.statistics import Statistics

from .scales import Scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules(Scales):
    """One of `formats.SCALE_RULES`."""

    rule: str | None = None  # None: floor for powers of two, max for others

    def fit(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        number_format: Format,
        factor: float,
    ) -> dict[str, UInt[Array, "*grid"]]:
        """See `Scales`."""
        return _fitted(weight, factor, number_format=number_format, rule=self.rule)


@partial(jax.jit, static_argnames=("number_format", "rule"))
def _fitted(
    weight: Float32[Array, "rows columns"],
    factor: Any,
    *,
    number_format: Format,
    rule: str | None,
) -> dict[str, UInt[Array, "*grid"]]:
    return fitting.fit(weight, number_format, scale_rule=rule, factor=factor)
