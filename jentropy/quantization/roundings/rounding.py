"""What a rounding is."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Bool, Float32, UInt

from jentropy.quantization.grid import Grid
from jentropy.quantization.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding(abc.ABC):
    """A way to choose a code for every weight.

    Example:
      >>> from jentropy.quantization import ROUNDINGS
      >>> issubclass(ROUNDINGS["nearest"], Rounding)
      True
    """

    @abc.abstractmethod
    def round(
        self,
        weight: Float32[Array, "rows columns"],
        grid: Grid,
        statistics: Statistics,
        mask: Bool[Array, "rows columns"] | None,
        key: Any,
    ) -> UInt[Array, "rows columns"]:
        """Codes of a matrix.

        Args:
          weight: what is to be expressed.
          grid: the numbers that there are.
          statistics: of the inputs.
          mask: False where the number nearest to 0 is to stand; None: nowhere.
          key: for what is drawn.
        """


def masked(
    weight: Float32[Array, "rows columns"], mask: Bool[Array, "rows columns"] | None
) -> Float32[Array, "rows columns"]:
    """The weight with zeros where a mask is False.

    Example:
      >>> import jax.numpy as jnp
      >>> masked(jnp.ones((1, 2)), jnp.array([[True, False]])).tolist()
      [[1.0, 0.0]]
    """
    return weight if mask is None else weight * mask.astype(weight.dtype)
