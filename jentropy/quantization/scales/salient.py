"""Groups of columns of one more bit, of one less and of neither, as many of the ones as of others.

SliM-LLM's allocation: columns that matter, by their weights over the diagonal of the inverse of
E[x x^T], have neighbours that do, so that whole groups take N + 1, N or N - 1 bits, N on average.
The element has N + 1 bits: a group that is to have fewer takes steps twice or four times as wide
and uses fewer of its numbers, which is what its codes then cost. How many groups move is tried, and
the weighted error decides.

References:
  Huang et al. 2024, SliM-LLM, arXiv 2405.14917.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt

from jentropy.errors import UnsupportedError
from jentropy.formats import WHOLE, Format, fitting
from jentropy.quantization.feedback import factor_of
from jentropy.quantization.grid import Grid
from jentropy.quantization.statistics import Statistics

from .scales import Scales

SHARES = (0.0, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5)  # of the groups, that get a bit more
FINER, USUAL, COARSER = 1.0, 2.0, 4.0  # steps, of the element's own


@dataclass(frozen=True, slots=True, kw_only=True)
class SalientGroups(Scales):
    """Scales by a rule, times 1, 2 or 4 by the salience of their columns.

    Example:
      >>> SalientGroups().rule is None
      True
    """

    rule: str | None = None

    def fit(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        number_format: Format,
        factor: float,
    ) -> dict[str, UInt[Array, "*grid"]]:
        """See `Scales`.

        Raises:
          UnsupportedError: scales that are not of groups of columns.
        """
        scales = fitting.of_weights(number_format, fitting.SCALES)
        rows, columns = scales[0].blocks(2) if len(scales) == 1 else (WHOLE, WHOLE)
        if rows != 1 or columns == WHOLE:
            raise UnsupportedError(
                "scales", expected="of groups of columns", found=number_format.name
            )
        groups = scales[0].grid(weight.shape)[1]
        salience = np.asarray(_salience(weight, statistics))
        padded = np.pad(salience, (0, groups * columns - salience.size))
        order = np.argsort(-padded.reshape(groups, columns).sum(-1), kind="stable")
        found = []
        for share in SHARES:
            moved = int(share * groups)
            steps = np.full(groups, USUAL, np.float32)
            steps[order[:moved]] = FINER
            steps[order[groups - moved :]] = COARSER
            trial = _trial(
                weight,
                statistics.diagonal,
                jnp.asarray(steps[None] * np.float32(factor)),
                number_format=number_format,
                rule=self.rule,
            )
            found.append((float(trial[0]), trial[1]))
        return min(found, key=lambda one: one[0])[1]


def _salience(
    weight: Float32[Array, "rows columns"], statistics: Statistics
) -> Float32[Array, " columns"]:
    power = jnp.square(weight).sum(0)
    if statistics.hessian is None:
        return power
    factor = factor_of(jnp.asarray(statistics.hessian, jnp.float32))  # U^T U is the inverse
    return power / jnp.square(factor).sum(0)


@partial(jax.jit, static_argnames=("number_format", "rule"))
def _trial(
    weight: Float32[Array, "rows columns"],
    power: Float32[Array, " columns"],
    factors: Float32[Array, "one groups"],
    *,
    number_format: Format,
    rule: str | None,
) -> tuple[Float32[Array, ""], dict[str, UInt[Array, "*grid"]]]:
    """The weighted error of rounding to nearest, and the parameters."""
    parameters = fitting.fit(weight, number_format, scale_rule=rule, factor=factors)
    grid = Grid(number_format=number_format, parameters=parameters)
    numbers = grid.decode(grid.encode(weight))
    return (jnp.square(numbers - weight) * power[None, :]).sum(), parameters
