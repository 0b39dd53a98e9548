"""Vectors of columns, one after the other, each making up for the errors of those before it.

With U as of `feedback.factor_of` and groups of d columns, the loss of a row is the sum over groups
of |e|^2, e = (target - numbers) U(group, group)^-1, and every later target is less e U(group, .):
LDLQ in blocks (Tseng et al., QuIP#, 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

# (targets [rows, d], what each column's squared error weighs [d], number of the group) -> arrays
# with what was found, each [rows, ...], and the numbers [rows, d]
Search = Callable[[Array, Array, Array], tuple[dict[str, Array], Array]]


def by_vectors(
    targets: Float32[Array, "rows columns"],
    feedback: Float32[Array, "columns columns"] | None,
    search: Search,
    dimensions: int,
) -> dict[str, Any]:
    """What a search found for all groups, to be traced.

    Args:
      targets: the weights.
      feedback: U; None: the identity.
      search: of a group; columns that there are not have target 0 and weigh nothing.
      dimensions: columns of a group.

    Returns:
      The arrays of the search, [groups, rows, ...].
    """
    rows, columns = targets.shape
    extra = -columns % dimensions
    starts = jnp.arange(0, columns + extra, dimensions)
    work = jnp.pad(targets, ((0, 0), (0, extra)))
    real = jnp.pad(jnp.ones(columns), (0, extra))
    if feedback is None:

        def one_group(start: Array) -> dict[str, Array]:
            part = lax.dynamic_slice(work, (0, start), (rows, dimensions))
            weights = lax.dynamic_slice(real, (start,), (dimensions,))
            return search(part, weights, start // dimensions)[0]

        return lax.map(one_group, starts)
    upper = jnp.pad(feedback, ((0, extra), (0, extra))) + jnp.diag(1 - real)

    def step(work: Array, start: Array) -> tuple[Array, dict[str, Array]]:
        part = lax.dynamic_slice(work, (0, start), (rows, dimensions))
        strip = lax.dynamic_slice(upper, (start, 0), (dimensions, columns + extra))
        inner = lax.dynamic_slice(strip, (0, start), (dimensions, dimensions))
        inverse = jax.scipy.linalg.solve_triangular(inner, jnp.eye(dimensions))
        weights = jnp.square(inverse).sum(1)
        weights = weights * lax.dynamic_slice(real, (start,), (dimensions,))
        found, numbers = search(part, weights, start // dimensions)
        precise = lax.Precision.HIGHEST
        errors = jnp.matmul(part - numbers, inverse, precision=precise)
        return work - jnp.matmul(errors, strip, precision=precise), found

    return lax.scan(step, work, starts)[1]


def laid(found: Array, columns: int) -> Array:
    """[groups, rows, d] to [rows, columns]."""
    return found.transpose(1, 0, 2).reshape(found.shape[1], -1)[:, :columns]
