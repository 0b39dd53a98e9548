"""Extents of blocks by gradient descent on the error of outputs: OmniQuant's learned clipping.

Rounding passes gradients straight through. What is learned is kept if it loses less than the rule.

References:
  Shao et al. 2023, OmniQuant, arXiv 2308.13137, equation 3; Esser et al. 2019, Learned step size
  quantization, arXiv 1902.08153.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt

from jentropy.formats import Format, dequantizing, fitting
from jentropy.formats.encoding import limits_of
from jentropy.quantization.adam import minimized
from jentropy.quantization.grid import Grid
from jentropy.quantization.roundings import levels
from jentropy.quantization.statistics import Statistics

from .scales import Scales


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedClipping(Scales):
    """Factors of extents, one a block.

    Example:
      >>> LearnedClipping(steps=40).rate
      0.01
    """

    steps: int = 80
    rate: float = 0.01
    rule: str | None = None

    def fit(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        number_format: Format,
        factor: float,
    ) -> dict[str, UInt[Array, "*grid"]]:
        """See `Scales`."""
        hessian = statistics.hessian
        if hessian is None:
            hessian = jnp.diag(statistics.diagonal)
        return _fitted(
            weight,
            jnp.asarray(hessian, jnp.float32),
            jnp.float32(factor),
            number_format=number_format,
            learning=self,
        )


@partial(jax.jit, static_argnames=("number_format", "learning"))
def _fitted(
    weight: Float32[Array, "rows columns"],
    hessian: Float32[Array, "columns columns"],
    factor: Float32[Array, ""],
    *,
    number_format: Format,
    learning: LearnedClipping,
) -> dict[str, UInt[Array, "*grid"]]:
    fit = partial(fitting.fit, weight, number_format, scale_rule=learning.rule)
    (scale,) = fitting.of_weights(number_format, fitting.SCALES)
    at_first = fit(factor=factor)
    own = {p.name: at_first[p.name] for p in number_format.parameters if p.of is not None}
    unit, zero = Grid(number_format=number_format, parameters=at_first).affine(weight.shape)
    element = number_format.element
    limits = limits_of(element)

    def error(numbers: Array) -> Array:
        lost = numbers - weight
        return jnp.vdot(lost @ hessian, lost)

    def loss(at: Array, _: Array) -> Array:
        each = unit * dequantizing.spread(jnp.exp(at), scale, weight.shape, None, None)
        inside = jnp.clip(weight / each + zero, limits.lowest, limits.largest)
        rounded = levels.numbers(levels.nearest(inside, element), element)
        straight = inside + jax.lax.stop_gradient(rounded - inside)
        return error((straight - zero) * each) / size

    def decoded(parameters: dict[str, Array]) -> Array:
        grid = Grid(number_format=number_format, parameters=parameters)
        return grid.decode(grid.encode(weight))

    size = jnp.maximum(error(decoded(at_first)), 1e-30)
    start = jnp.zeros(scale.grid(weight.shape), jnp.float32)
    factors = jnp.exp(minimized(loss, start, learning.steps, learning.rate))
    learned = fit(factor=factor * factors, inner=own)
    is_better = error(decoded(learned)) < size
    return {name: jnp.where(is_better, learned[name], at_first[name]) for name in at_first}
