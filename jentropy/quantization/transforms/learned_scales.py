"""Factors of columns by gradient descent on the error of outputs: OmniQuant's equivalent scales.

Rounding passes gradients straight through, extents of groups do not: they follow the largest. What
is learned is kept if it loses less than no factors do.

References:
  Shao et al. 2023, OmniQuant, arXiv 2308.13137, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jentropy.quantization.adam import minimized
from jentropy.quantization.statistics import Statistics

from .column_scales import ColumnScales, balanced

TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedScales(ColumnScales):
    """Learned with weights rounded to as many whole numbers between the ends of a group.

    Example:
      >>> LearnedScales(bits=4).steps
      80
    """

    bits: int = 3
    group: int = 128
    steps: int = 80
    rate: float = 0.01

    def factors(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> Float32[Array, " columns"]:
        """See `ColumnScales`."""
        hessian = statistics.hessian
        hessian = jnp.diag(statistics.diagonal) if hessian is None else jnp.asarray(hessian)
        return _factors(weight, hessian.astype(jnp.float32), learning=self)


@partial(jax.jit, static_argnames="learning")
def _factors(
    weight: Float32[Array, "rows columns"],
    hessian: Float32[Array, "columns columns"],
    *,
    learning: LearnedScales,
) -> Float32[Array, " columns"]:
    rows, columns = weight.shape
    group, last = min(learning.group, columns), 2**learning.bits - 1
    beyond = -columns % group

    def rounded(scaled: Array) -> Array:
        blocks = jnp.pad(scaled, ((0, 0), (0, beyond))).reshape(rows, -1, group)
        least = jnp.minimum(blocks.min(2, keepdims=True), 0)
        most = jnp.maximum(blocks.max(2, keepdims=True), 0)
        step = jnp.maximum(most - least, TINY) / last
        zero = jax.lax.stop_gradient(jnp.round(-least / step))
        places = blocks / step + zero
        whole = jnp.clip(jnp.round(places), 0, last)
        straight = places + jax.lax.stop_gradient(whole - places)
        return ((straight - zero) * step).reshape(rows, -1)[:, :columns]

    def lost(at: Array) -> Array:
        factors = jnp.exp(at)
        error = rounded(weight * factors[None, :]) / factors[None, :] - weight
        return jnp.vdot(error @ hessian, error)

    start = jnp.zeros(columns, jnp.float32)
    size = jnp.maximum(lost(start), 1e-30)
    at = minimized(lambda at, _: lost(at) / size, start, learning.steps, learning.rate)
    return jnp.where(lost(at) < size, balanced(jnp.exp(at)), 1.0)
