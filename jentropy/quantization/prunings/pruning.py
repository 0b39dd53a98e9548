"""What a pruning is."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from jaxtyping import Array, Bool, Float32

from jentropy.quantization.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning(abc.ABC):
    """A way to choose weights that become 0.

    Example:
      >>> from jentropy.quantization.prunings import PRUNINGS
      >>> all(issubclass(kind, Pruning) for kind in PRUNINGS.values())
      True
    """

    @abc.abstractmethod
    def prune(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> tuple[Float32[Array, "rows columns"], Bool[Array, "rows columns"]]:
        """The matrix, what is left perhaps changed to make up for the rest, and True where it
        stays."""
