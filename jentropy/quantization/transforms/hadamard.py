"""Random signs and a Hadamard rotation of the columns, and of the rows where both sides are asked.

Rotated weights are nearly Gaussian and their Hessian nearly a multiple of what it is, so that no
outlier is left (Tseng et al., QuIP#, 2024; two-sided: Chee et al., QuIP, 2023, whose random
orthogonal matrices have the same effect).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jentropy.formats import Step
from jentropy.formats.hadamard import largest_block
from jentropy.formats.hadamard import rotated as rotated_eagerly
from jentropy.quantization.statistics import Statistics

from . import kept
from .transform import Transform, Transformed

rotated = partial(jax.jit, static_argnames="block")(rotated_eagerly)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hadamard(Transform):
    """A rotation of one axis.

    Attributes:
      axis: 1: of the columns; 0: of the rows.
      block: the largest that there may be; None: the whole axis, if there is such a matrix.
    """

    axis: int = 1
    block: int | None = None

    def forward(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        key: Any,
        prefix: str,
    ) -> Transformed:
        """See `Transform`."""
        length = weight.shape[self.axis]
        limit = length if self.block is None else math.gcd(length, self.block)
        block = largest_block(limit)
        signs = jax.random.bernoulli(key, shape=(length,))
        own, codes = kept.whole(prefix + "signs", signs, jnp.uint8)
        step = Step(
            name="hadamard", settings=(("axis", self.axis), ("block", block)), arrays=(own,)
        )
        factors = jnp.where(signs, -1, 1).astype(jnp.float32)
        if self.axis == 1:
            weight = rotated(weight * factors[None, :], block=block)
            statistics = _rotated(statistics, factors, block)
        else:
            weight = rotated(weight.T * factors[None, :], block=block).T
        return Transformed(weight=weight, statistics=statistics, step=step, codes={own.name: codes})


def _rotated(statistics: Statistics, factors: Float32[Array, " columns"], block: int) -> Statistics:
    """Of the rotated inputs, whose ends are taken for what ends of normal numbers are."""
    hessian = statistics.hessian
    if hessian is not None:
        half = rotated(jnp.asarray(hessian) * factors[None, :], block=block)
        hessian = rotated(half.T * factors[None, :], block=block)
    moved = replace(statistics, hessian=hessian)
    tokens = jnp.maximum(2.0, jnp.asarray(statistics.tokens, jnp.float32))
    ends = jnp.sqrt(2 * jnp.log(tokens) * moved.diagonal)
    return replace(moved, low=-ends, high=ends)
