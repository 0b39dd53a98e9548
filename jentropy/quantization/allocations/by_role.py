"""A better alphabet for what is known to matter more, by name and by the place of the layer.

llama.cpp's K-quants of medium size give the matrices of values, and those that lead out of an MLP,
a better type in the first and the last eighth of the layers, and in every third between.

References:
  llama.cpp, src/llama-quant.cpp, `use_more_bits`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jentropy.quantization.recipe import Allocation, Alphabet, Recipe, Share
from jentropy.quantization.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class ByRole(Allocation):
    """A better alphabet, or finer scales, for some tensors.

    Attributes:
      roles: a regular expression; tensors whose names have it may get more.
      better: their alphabet; None: the recipe's own.
      factor: of their scales.
      all_layers: whether they get it in every layer.
    """

    roles: str = r"(v_proj|kv_b_proj|down_proj)"
    better: Alphabet | None = None
    factor: float = 1.0
    all_layers: bool = False

    def shares(
        self,
        weights: Mapping[str, Any],
        recipe: Recipe,
        statistics: Mapping[str, Statistics],
        bits: float | None,
        loss: Callable[[Mapping[str, Any]], float] | None,
    ) -> dict[str, Share]:
        """See `Allocation`."""
        numbers = {name: _layer(name) for name in weights}
        layers = max(numbers.values(), default=0) + 1
        finer = Share(
            recipe=replace(recipe, alphabet=self.better or recipe.alphabet), factor=self.factor
        )
        return {
            name: finer
            if re.search(self.roles, name) and (self.all_layers or matters(numbers[name], layers))
            else Share(recipe=recipe)
            for name in weights
        }


def _layer(name: str) -> int:
    found = re.search(r"\blayers\.(\d+)\.", name)
    return int(found[1]) if found else 0


def matters(layer: int, layers: int) -> bool:
    """Whether K-quants spend more bits on a layer.

    Example:
      >>> [n for n in range(16) if matters(n, 16)]
      [0, 1, 4, 7, 10, 13, 14, 15]
    """
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
