"""Scales by trial: of each block the one with the least error, weighted by E[x^2].

Extents of blocks are multiplied by each of some numbers, weights rounded to nearest with what
comes of it, and every block keeps the best. Scales of scales are those of the largest extents.

References:
  ggml's importance matrix (imatrix), 2024; Lin et al. 2024, AWQ's clipping, arXiv 2306.00978; Cook
  et al. 2025, Four Over Six, arXiv 2512.02010 (NVFP4 with multipliers 1 and 1.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt

from jentropy.formats import Format, fitting
from jentropy.quantization.grid import Grid
from jentropy.quantization.statistics import Statistics

from .scales import Scales

MULTIPLIERS = tuple(round(0.4 + 0.05 * i, 2) for i in range(15))  # .4 to 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(Scales):
    """The best of some multiples of what a rule says.

    Example:
      >>> Search(multipliers=(1.0, 1.5)).rule is None
      True
    """

    multipliers: tuple[float, ...] = MULTIPLIERS
    rule: str | None = None

    def fit(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        number_format: Format,
        factor: float,
    ) -> dict[str, UInt[Array, "*grid"]]:
        """See `Scales`."""
        trials = jnp.asarray(sorted(self.multipliers), jnp.float32) * jnp.float32(factor)
        return _fitted(
            weight, statistics.diagonal, trials, number_format=number_format, rule=self.rule
        )


@partial(jax.jit, static_argnames=("number_format", "rule"))
def _fitted(
    weight: Float32[Array, "rows columns"],
    power: Float32[Array, " columns"],
    trials: Float32[Array, " trials"],
    *,
    number_format: Format,
    rule: str | None,
) -> dict[str, UInt[Array, "*grid"]]:
    fit = partial(fitting.fit, weight, number_format, scale_rule=rule)
    (scale,) = fitting.of_weights(number_format, fitting.SCALES)
    inner_names = [p.name for p in number_format.parameters if p.of is not None]
    largest = fit(factor=trials[-1])
    inner = {name: largest[name] for name in inner_names}
    blocks = scale.blocks(2)
    shape = scale.grid(weight.shape)

    def trial(best: tuple[Array, Array], factor: Array) -> tuple[tuple[Array, Array], None]:
        grid = Grid(number_format=number_format, parameters=fit(factor=factor, inner=inner))
        lost = jnp.square(grid.decode(grid.encode(weight)) - weight) * power[None, :]
        error = fitting.reduced(lost, blocks, jnp.sum)
        return (
            jnp.minimum(error, best[0]),
            jnp.where(error < best[0], factor, best[1]),
        ), None

    start = jnp.full(shape, jnp.inf), jnp.full(shape, trials[-1])
    (_, factors), _ = jax.lax.scan(trial, start, trials[::-1])
    return fit(factor=factors, inner=inner)
