"""Every tensor as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jentropy.quantization.recipe import Allocation, Recipe, Share
from jentropy.quantization.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Equal(Allocation):
    """The same recipe for all."""

    def shares(
        self,
        weights: Mapping[str, Any],
        recipe: Recipe,
        statistics: Mapping[str, Statistics],
        bits: float | None,
        loss: Callable[[Mapping[str, Any]], float] | None,
    ) -> dict[str, Share]:
        """See `Allocation`."""
        return {name: Share(recipe=recipe) for name in weights}
