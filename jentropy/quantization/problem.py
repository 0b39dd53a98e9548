"""What an alphabet is asked, and what it answers: one matrix, after transforms and pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Bool, Float32

from jentropy.formats import Format

from .roundings.rounding import Rounding
from .scales.scales import Scales
from .statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One matrix to be expressed in an alphabet.

    Attributes:
      weight: float32[rows, columns].
      statistics: of its inputs, in the weight's space.
      scales: how parameters are found.
      rounding: how codes are.
      mask: bool[rows, columns], True where weights stay; others are to become 0. None: all stay.
      factor: the one knob of the rate: 1 is what the recipe says, more is coarser.
      key: of `jax.random`, for whatever is drawn.
    """

    weight: Float32[Array, "rows columns"]
    statistics: Statistics
    scales: Scales
    rounding: Rounding
    mask: Bool[Array, "rows columns"] | None = None
    factor: float = 1.0
    key: Any = None

    def drawn(self) -> Any:
        """The key, or that of 0."""
        return jax.random.key(0) if self.key is None else self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Codes and arrays of one matrix, and the format that says what they mean.

    Attributes:
      number_format: its transforms are those of what was solved, not those that led to the problem.
      codes: `code`, parameters, and arrays of the decoder, by name.
    """

    number_format: Format
    codes: dict[str, Any]
