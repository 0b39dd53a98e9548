"""Every tensor one way of a menu, best of all within the bits, or within another cost: exactly.

Each way is tried on some rows of each tensor. What it loses is the sensitivity times its squared
error, or, with `kl`, the KL of the model with this tensor alone quantised so.

References:
  HAWQ-V3, arXiv 2011.10680; OHQ, arXiv 2309.01945, whose cost is the time that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jentropy.errors import InputError
from jentropy.quantization import rates, sensitivities
from jentropy.quantization.quantizing import quantize_weight, sampled
from jentropy.quantization.recipe import Allocation, Alphabet, Recipe, Share
from jentropy.quantization.statistics import Statistics

from .programs import cheapest


@dataclass(frozen=True, slots=True, kw_only=True)
class Knapsack(Allocation):
    """An alphabet of a menu, or a factor of the recipe's own, for every tensor.

    Attributes:
      menu: alphabets; none: the recipe's own.
      factors: how much coarser each of them may be.
      sensitivity: in `SENSITIVITIES`.
      costs: of a weight in each way (alphabets outside, factors inside), such as seconds that
        `bench` measured; the bits asked for are then the mean of these. None: coded bits.
    """

    menu: tuple[Alphabet, ...] = ()
    factors: tuple[float, ...] = (1.0,)
    sensitivity: str = "fisher"
    costs: tuple[float, ...] | None = None
    bits: float | None = None  # that are asked for where nobody asks for others

    @property
    def is_settled(self) -> bool:
        """They do."""
        return True

    def shares(
        self,
        weights: Mapping[str, Any],
        recipe: Recipe,
        statistics: Mapping[str, Statistics],
        bits: float | None,
        loss: Callable[[Mapping[str, Any]], float] | None,
    ) -> dict[str, Share]:
        """See `Allocation`.

        Raises:
          InputError: no bits are asked for, or fewer than the cheapest ways have.
        """
        bits = self.bits if bits is None else bits
        if bits is None:
            raise InputError("bits of an allocation", expected="a number", found=None)
        ways = [
            Share(recipe=replace(recipe, alphabet=alphabet), factor=factor)
            for alphabet in self.menu or (recipe.alphabet,)
            for factor in self.factors
        ]
        if self.costs is not None and len(self.costs) != len(ways):
            raise InputError("costs of an allocation", expected=len(ways), found=len(self.costs))
        found = sensitivities.measured(
            "fisher" if self.sensitivity == "kl" else self.sensitivity,
            weights,
            recipe,
            statistics,
            loss,
        )
        costs: list[list[float]] = []
        losses: list[list[float]] = []
        total = 0
        for name, weight in weights.items():
            numbers = jnp.asarray(weight).astype(jnp.float32)
            total += numbers.size
            asked = loss if self.sensitivity == "kl" else None
            sample = sampled(numbers) if asked is None else numbers
            costs.append([])
            losses.append([])
            for number, way in enumerate(ways):
                made = quantize_weight(sample, way.recipe, statistics[name], factor=way.factor)
                cost = self.costs[number] if self.costs else rates.estimated(made)
                costs[-1].append(cost * numbers.size)
                decoded = np.asarray(made.dequantize(np.float32))
                if asked is None:
                    error = np.square(decoded - np.asarray(sample)).mean()
                    losses[-1].append(float(error) * found[name] * numbers.size)
                else:
                    losses[-1].append(max(asked({name: decoded}), 0.0))
        chosen = cheapest(costs, losses, bits * total)
        return {name: ways[way] for name, way in zip(weights, chosen, strict=True)}
