"""What a transform is, on the way forward."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float32

from jentropy.formats import Step
from jentropy.quantization.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformed:
    """A matrix in the space where it is quantised.

    Attributes:
      weight: float32[rows, columns].
      statistics: of its inputs there: with W' = f(W), those for which errors weigh the same.
      step: what undoes it, of `formats.TRANSFORMS`; None: nothing has to.
      codes: the step's arrays by name, unsigned integers of their elements.
    """

    weight: Float32[Array, "rows columns"]
    statistics: Statistics
    step: Step | None
    codes: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform(abc.ABC):
    """A way to change a matrix so that it is easier to quantise.

    Example:
      >>> from jentropy.quantization.transforms import TRANSFORMS
      >>> all(issubclass(kind, Transform) for kind in TRANSFORMS.values())
      True
    """

    @abc.abstractmethod
    def forward(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        key: Any,
        prefix: str,
    ) -> Transformed:
        """A matrix there.

        Args:
          weight: as it comes from the transform before.
          statistics: of its inputs.
          key: of `jax.random`, for what is drawn that may differ from matrix to matrix; what the
            step says, a seed, is a setting, as matrices of a stack share their format.
          prefix: with which names of the step's arrays begin.
        """
