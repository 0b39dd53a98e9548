"""A branch of low rank in 16 bits takes what is largest, and the rest is quantised.

M. Li et al., SVDQuant: absorbing outliers by low-rank components for 4-bit diffusion models, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jentropy.formats import Step
from jentropy.quantization.statistics import Statistics

from . import kept
from .transform import Transform, Transformed

OVERSAMPLED = 8  # ranks more than are asked for, while they are looked for
ROUNDS = 4  # of power iteration


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank(Transform):
    """The largest singular vectors of a weight, weighed by its inputs.

    Attributes:
      rank: of the branch, or that of the matrix if it is less.
    """

    rank: int = 16

    def forward(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        key: Any,
        prefix: str,
    ) -> Transformed:
        """See `Transform`."""
        step, codes, product = branch(weight, statistics, self.rank, key, prefix)
        return Transformed(weight=weight - product, statistics=statistics, step=step, codes=codes)


def branch(
    weight: Float32[Array, "rows columns"],
    statistics: Statistics,
    rank: int,
    key: Any,
    prefix: str,
) -> tuple[Step, dict[str, Any], Float32[Array, "rows columns"]]:
    """The step that adds the closest matrix of a rank, its arrays by name, and that matrix."""
    rank = min(rank, *weight.shape)
    power = jnp.sqrt(jnp.maximum(statistics.diagonal, 1e-6 * statistics.diagonal.mean() + 1e-30))
    left, right = closest(weight * power[None, :], key, rank=rank)
    one, left_codes, left = kept.numbers(prefix + "left", left)
    other, right_codes, right = kept.numbers(prefix + "right", right / power[None, :])
    product = jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
    step = Step(name="low_rank", arrays=(one, other))
    return step, {one.name: left_codes, other.name: right_codes}, product


@partial(jax.jit, static_argnames="rank")
def closest(
    matrix: Float32[Array, "rows columns"], key: Any, *, rank: int
) -> tuple[Float32[Array, "rows rank"], Float32[Array, "rank columns"]]:
    """Two matrices whose product is as close to a matrix as their rank allows.

    N. Halko et al., Finding structure with randomness, 2011.

    Args:
      matrix: any.
      key: of `jax.random`, for the directions that are looked into.
      rank: at most that of the matrix.
    """
    width = min(rank + OVERSAMPLED, *matrix.shape)
    basis = jax.random.normal(key, (matrix.shape[1], width))
    for _ in range(ROUNDS):
        basis = jnp.linalg.qr(matrix @ basis)[0]
        basis = jnp.linalg.qr(matrix.T @ basis)[0]
    left, values, right = jnp.linalg.svd(matrix @ basis, full_matrices=False)
    root = jnp.sqrt(values[:rank])
    return left[:, :rank] * root[None, :], root[:, None] * (right[:rank] @ basis.T)
