"""How much a squared error of a matrix' weights costs a model, relative to other matrices.

    trace     mean of E[x^2]: what outputs lose (of HAWQ-V2's trace the inputs' part)
    fisher    times the mean squared gradient of an output: the loss's second derivative, Kronecker
              factored (K-FAC), on average over the weights
    pivots    the same of what sequential rounding leaves: the variance of each input given those
              before it, its geometric mean
    eigen     the gradient times the largest eigenvalue of E[x x^T], by power iteration: the worst
              direction (HAWQ)
    entropy   the entropy power of the weights, over their variance: how even their distribution is
              (QuantMCU)
    kl        measured: KL of the model with this matrix alone quantised, over its squared error

A sensitivity is per squared error of one weight.

References:
  HAWQ, arXiv 1905.03696; HAWQ-V2, arXiv 1911.03852; K-FAC, arXiv 1503.05671; QuantMCU, arXiv
  2401.11018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from .quantizing import quantize_weight
from .recipe import Recipe
from .statistics import Statistics

ITERATIONS = 100  # of the power iteration, at the most
CLOSE = 1e-4  # relative change of the eigenvalue that ends it
DAMPING = 0.01  # of the mean of E[x^2], added before pivots are taken
BINS = 256
LEAST = 1e-30

Loss = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a sensitivity may look at.

    Attributes:
      name: of the tensor.
      weight: float[..., rows, columns].
      statistics: of its inputs.
      recipe: by which it will be quantised.
      loss: of the model with some weights in place of its own; None: there is none.
    """

    name: str
    weight: Any
    statistics: Statistics
    recipe: Recipe
    loss: Loss | None


def trace(asked: Asked) -> float:
    """See the head of this file.

    Args:
      asked: of a tensor.
    """
    return float(jnp.mean(asked.statistics.diagonal))


def fisher(asked: Asked) -> float:
    """See the head of this file.

    Args:
      asked: of a tensor.
    """
    return float(jnp.mean(asked.statistics.sensitivity))


def pivots(asked: Asked) -> float:
    """See the head of this file.

    Args:
      asked: of a tensor.
    """
    told = asked.statistics
    if told.hessian is None:
        return fisher(asked)
    hessian = np.asarray(told.hessian, np.float64)
    width = hessian.shape[-1]
    damping = DAMPING * np.trace(hessian, axis1=-2, axis2=-1)[..., None, None] / width
    factor = np.linalg.cholesky(hessian + (damping + LEAST) * np.eye(width))
    logs = 2 * np.log(np.diagonal(factor, axis1=-2, axis2=-1))
    return float(np.mean(np.asarray(told.gradient) * np.exp(logs.mean(-1))))


def eigen(asked: Asked) -> float:
    """See the head of this file.

    Args:
      asked: of a tensor.
    """
    told = asked.statistics
    if told.hessian is None:
        return fisher(asked)
    hessian = jnp.asarray(told.hessian, jnp.float32)
    stacked = hessian.reshape(-1, *hessian.shape[-2:])
    largest = np.asarray(jax.vmap(largest_eigenvalue)(stacked))
    return float(np.mean(np.asarray(told.gradient).reshape(-1) * largest))


@jax.jit
def largest_eigenvalue(matrix: Float32[Array, "n n"]) -> Float32[Array, ""]:
    """Of a positive semidefinite matrix, by power iteration from the row sums of its magnitudes.

    Args:
      matrix: symmetric.

    Example:
      >>> round(float(largest_eigenvalue(jnp.array([[2.0, 1.0], [1.0, 2.0]]))), 3)
      3.0
    """

    def step(state: tuple) -> tuple:
        n, vector, value, _ = state
        product = jnp.matmul(matrix, vector, precision="highest")
        norm = jnp.linalg.norm(product)
        return n + 1, product / jnp.maximum(norm, LEAST), norm, value

    def goes_on(state: tuple) -> Array:
        n, _, value, before = state
        return (n < ITERATIONS) & (jnp.abs(value - before) > CLOSE * value)

    start = jnp.abs(matrix).sum(0) + LEAST
    first = start / jnp.linalg.norm(start)
    state = jnp.int32(0), first, jnp.float32(1), jnp.float32(0)
    return jax.lax.while_loop(goes_on, step, state)[2]


def entropy(asked: Asked) -> float:
    """See the head of this file.

    Args:
      asked: of a tensor.
    """
    numbers = np.asarray(asked.weight, np.float64).reshape(-1)
    counts, edges = np.histogram(numbers, BINS)
    shares = counts[counts > 0] / numbers.size
    nats = math.log(max(edges[1] - edges[0], LEAST)) - float((shares * np.log(shares)).sum())
    return math.exp(2 * nats) / max(float(numbers.var()), LEAST)


def kl(asked: Asked) -> float:
    """See the head of this file; without a loss to ask, `fisher`.

    Args:
      asked: of a tensor.
    """
    if asked.loss is None:
        return fisher(asked)
    made = quantize_weight(asked.weight, asked.recipe, asked.statistics)
    decoded = np.asarray(made.dequantize(np.float32))
    error = float(np.square(decoded - np.asarray(asked.weight)).sum())
    return max(asked.loss({asked.name: decoded}), 0.0) / max(error, LEAST)


SENSITIVITIES: dict[str, Callable[[Asked], float]] = {
    "trace": trace,
    "fisher": fisher,
    "pivots": pivots,
    "eigen": eigen,
    "entropy": entropy,
    "kl": kl,
}


def measured(
    kind: str,
    weights: Mapping[str, Any],
    recipe: Recipe,
    statistics: Mapping[str, Statistics],
    loss: Loss | None,
) -> dict[str, float]:
    """Sensitivities of all tensors.

    Args:
      kind: a key of `SENSITIVITIES`.
      weights, statistics: by name.
      recipe: by which they will be quantised.
      loss: see `Asked`.

    Returns:
      By name, more than 0.

    Example:
      >>> from jentropy.quantization import RECIPES
      >>> told = Statistics.identity(4)
      >>> measured("trace", {"w": np.eye(4)}, RECIPES["rtn"], {"w": told}, None)
      {'w': 1.0}
    """
    function = SENSITIVITIES[kind]
    found = {
        name: function(
            Asked(name=name, weight=weight, statistics=statistics[name], recipe=recipe, loss=loss)
        )
        for name, weight in weights.items()
    }
    return {name: max(value, LEAST) for name, value in found.items()}
