"""The triangular factor by which an error of a column moves the columns that follow."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from .statistics import Statistics

DAMPING = 0.01  # of the mean of the diagonal, added to it: GPTQ's


@jax.jit
def factor_of(
    hessian: Float32[Array, "columns columns"], damping: Any = DAMPING
) -> Float32[Array, "columns columns"]:
    """U, upper triangular with U^T U the inverse of the damped Hessian.

    The loss of errors E of a matrix is then the sum of squares of E U^-1, and if column j is
    rounded to w(j) - sum over i < j of e(i) U(i, j) with e(i) = (target - number) / U(i, i), that
    of the e.

    Args:
      hessian: E[x x^T]; columns without any input are taken for the mean of others.
      damping: see `DAMPING`.

    Example:
      >>> factor_of(jnp.eye(2) * 4.0, 0.0).tolist()
      [[0.5, 0.0], [0.0, 0.5]]
    """
    diagonal = jnp.diagonal(hessian)
    mean = diagonal.mean()
    mean = jnp.where(mean > 0, mean, 1)
    damped = hessian + jnp.diag(jnp.where(diagonal > 0, damping * mean, mean))
    # The Cholesky factor from the last column on, inverted: no inverse of the whole is taken.
    reversed_factor = jnp.linalg.cholesky(damped[::-1, ::-1])
    lower = jax.scipy.linalg.solve_triangular(reversed_factor, jnp.eye(len(damped)), lower=True)
    return lower[::-1, ::-1]


def feedback_of(statistics: Statistics, damping: float) -> Float32[Array, "columns columns"] | None:
    """`factor_of` of the inputs of a matrix; None without a Hessian, where errors move nothing.

    Example:
      >>> feedback_of(Statistics.identity(2), 0.01) is None
      True
    """
    return None if statistics.hessian is None else factor_of(statistics.hessian, damping)
