"""A recipe: one entry of each axis, and how bits are shared among weights that follow it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .alphabets import Alphabet
from .prunings import Pruning
from .roundings import Nearest, Rounding
from .scales import Rules, Scales
from .statistics import Statistics
from .transforms import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How weights are quantised; hashable.

    Attributes:
      alphabet: the numbers that codes may mean.
      scales: how parameters that blocks share are found.
      rounding: how codes are; vector alphabets have their own way.
      transforms: what is done to a weight before, in this order.
      pruning: which weights become 0, after the transforms.
      allocation: how bits are shared among tensors; None: each as the recipe says.
      activations: name of what becomes of the inputs of layers (`models.activations.ACTIVATIONS`)
        where the method is made for rounded ones; nothing of it is in the weights.

    Example:
      >>> from jentropy.quantization import RECIPES
      >>> RECIPES["rtn"].rounding
      Nearest()
    """

    alphabet: Alphabet
    scales: Scales = field(default_factory=Rules)
    rounding: Rounding = field(default_factory=Nearest)
    transforms: tuple[Transform, ...] = ()
    pruning: Pruning | None = None
    allocation: Allocation | None = None
    activations: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a tensor is given.

    Attributes:
      recipe: how it is quantised.
      factor: how much coarser than the recipe says, relative to the other tensors.
    """

    recipe: Recipe
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation(abc.ABC):
    """A way to share bits out.

    Example:
      >>> from jentropy.quantization import ALLOCATIONS
      >>> issubclass(ALLOCATIONS["equal"], Allocation)
      True
    """

    @property
    def is_settled(self) -> bool:
        """Whether shares meet the bits that were asked for; else all factors are moved together
        until the coded bits do."""
        return False

    @abc.abstractmethod
    def shares(
        self,
        weights: Mapping[str, Any],
        recipe: Recipe,
        statistics: Mapping[str, Statistics],
        bits: float | None,
        loss: Callable[[Mapping[str, Any]], float] | None,
    ) -> dict[str, Share]:
        """What each tensor is given.

        Args:
          weights: float32[..., rows, columns] by name.
          recipe: what was asked for.
          statistics: of those that were calibrated, by name.
          bits: mean coded bits of a weight that are asked for; None: as the recipe says.
          loss: of a model with some weights in place of its own, by name; None: there is none.
        """
