"""The weights of least size become 0; or of least size times that of their inputs.

Wanda: M. Sun et al., A simple and effective pruning approach for large language models, 2024.
N:M (A. Mishra et al., Accelerating sparse deep neural networks, 2021): the best n of every m.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jentropy.quantization.statistics import Statistics

from .pruning import Pruning


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude(Pruning):
    """By |w|.

    Attributes:
      share: of every row that becomes 0, where there is no pattern.
      pattern: (n, m): of every m neighbours in a row n stay; None: anywhere in a row.
    """

    share: float = 0.5
    pattern: tuple[int, int] | None = None

    def importance(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> Float32[Array, "rows columns"]:
        """How much each weight matters."""
        return jnp.abs(weight)

    def prune(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> tuple[Float32[Array, "rows columns"], Bool[Array, "rows columns"]]:
        """See `Pruning`."""
        kept = largest(self.importance(weight, statistics), share=self.share, pattern=self.pattern)
        return jnp.where(kept, weight, 0), kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanda(Magnitude):
    """By |w| times the root of E[x^2]."""

    def importance(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> Float32[Array, "rows columns"]:
        """See `Magnitude`."""
        return jnp.abs(weight) * jnp.sqrt(statistics.diagonal)[None, :]


@partial(jax.jit, static_argnames=("share", "pattern"))
def largest(
    importance: Float32[Array, "rows columns"], *, share: float, pattern: tuple[int, int] | None
) -> Bool[Array, "rows columns"]:
    """Which of them stay: all but a share of each row, or the largest n of m.

    Example:
      >>> largest(jnp.float32([[4, 1, 3, 2, 5]]), share=0.0, pattern=(2, 4)).tolist()
      [[True, False, True, False, True]]
    """
    rows, columns = importance.shape
    kept, group = (round((1 - share) * columns), columns) if pattern is None else pattern
    padded = jnp.pad(importance, ((0, 0), (0, -columns % group)), constant_values=-1.0)
    groups = padded.reshape(rows, -1, group)
    rank = jnp.argsort(jnp.argsort(-groups, axis=-1, stable=True), axis=-1)
    return (rank < kept).reshape(rows, -1)[:, :columns]
