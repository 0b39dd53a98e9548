"""How an error of a column of weights is made up for by others: triangular factors of E[x x^T]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jentropy.errors import InputError

from .statistics import Statistics

DAMPING = 0.01  # of the mean of the diagonal, added to it: GPTQ's
DAMPINGS = 6  # tenfold larger ones that are tried where a matrix is not positive definite


def root_of(
    hessian: Float32[Array, "columns columns"], damping: float = DAMPING
) -> Float32[Array, "columns columns"]:
    """R, upper triangular with R R^T the damped Hessian.

    The loss of errors E of a matrix is then the sum of squares of E R. Rounding may have left a
    Hessian indefinite: more is added then.

    Args:
      hessian: E[x x^T]; columns without any input are taken for the mean of others.
      damping: see `DAMPING`.

    Raises:
      InputError: no damping makes it positive definite.

    Example:
      >>> root_of(jnp.eye(2) * 4.0, 0.0).tolist()
      [[2.0, 0.0], [0.0, 2.0]]
    """
    for _ in range(DAMPINGS):
        root = _root(hessian, jnp.float32(damping))
        if bool(jnp.isfinite(root).all()):
            return root
        damping = 10 * damping or 1e-6
    raise InputError(
        "E[x x^T] of the inputs", expected="a positive semidefinite matrix", found="another one"
    )


@jax.jit
def _root(
    hessian: Float32[Array, "columns columns"], damping: Float32[Array, ""]
) -> Float32[Array, "columns columns"]:
    diagonal = jnp.diagonal(hessian)
    mean = diagonal.mean()
    mean = jnp.where(mean > 0, mean, 1)
    damped = hessian + jnp.diag(jnp.where(diagonal > 0, damping * mean, mean))
    # Cholesky's factor of the matrix turned round is lower triangular, and so this upper.
    return jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]


def factor_of(
    hessian: Float32[Array, "columns columns"], damping: float = DAMPING
) -> Float32[Array, "columns columns"]:
    """U, the inverse of `root_of`: upper triangular with U^T U the inverse of the damped Hessian.

    If column j is rounded to w(j) - sum over i < j of e(i) U(i, j) with e(i) = (target - number) /
    U(i, i), then the loss is the sum of squares of the e.

    Args:
      hessian, damping: see `root_of`.

    Raises:
      InputError: see `root_of`.

    Example:
      >>> factor_of(jnp.eye(2) * 4.0, 0.0).tolist()
      [[0.5, 0.0], [0.0, 0.5]]
    """
    return _inverse(root_of(hessian, damping))


@jax.jit
def _inverse(root: Float32[Array, "columns columns"]) -> Float32[Array, "columns columns"]:
    return jax.scipy.linalg.solve_triangular(root, jnp.eye(len(root)), lower=False)


def feedback_of(statistics: Statistics, damping: float) -> Float32[Array, "columns columns"] | None:
    """`factor_of` of the inputs of a matrix; None without a Hessian, where errors move nothing.

    Example:
      >>> feedback_of(Statistics.identity(2), 0.01) is None
      True
    """
    return None if statistics.hessian is None else factor_of(statistics.hessian, damping)
