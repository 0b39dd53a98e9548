"""What a way to find scales is."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from jaxtyping import Array, Float32, UInt

from jentropy.formats import Format
from jentropy.quantization.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales(abc.ABC):
    """A way to find the parameters of an elementwise format.

    Example:
      >>> from jentropy.quantization import SCALES
      >>> issubclass(SCALES["rules"], Scales)
      True
    """

    @abc.abstractmethod
    def fit(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        number_format: Format,
        factor: float,
    ) -> dict[str, UInt[Array, "*grid"]]:
        """Codes of a matrix' parameters by name, each on its grid.

        Args:
          weight: what is to be expressed.
          statistics: of the inputs.
          number_format: elementwise.
          factor: how much coarser than is best without regard to bits.
        """
