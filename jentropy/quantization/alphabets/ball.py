"""QuIP#'s codebook of 2^16 points of E8, two bits of a weight.

Tseng et al., QuIP#, 2024. The nearest of all is found by magnitudes: the signs are those of the
target, and where their number is not what the magnitudes need, the one that costs least is turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt16

from jentropy.formats import FP32, Format, Parameter, Step, codes_of
from jentropy.formats.vectors import DIMENSIONS, is_negated_oddly, magnitudes
from jentropy.quantization.feedback import feedback_of
from jentropy.quantization.problem import Problem, Solution

from .alphabet import Alphabet
from .by_vectors import by_vectors
from .integer import integer_element
from .trellis import refuse_masks, root_mean_square

BEST = 0.97  # scale of N(0, 1) at which a vector's squared error is least


@dataclass(frozen=True, slots=True, kw_only=True)
class Ball(Alphabet):
    """Vectors of the ball, times one scale.

    Attributes:
      scale: of the root mean square of the weights, at factor 1.
      damping: of the Hessian.
    """

    scale: float = BEST
    damping: float = 0.01

    def solve(self, problem: Problem) -> Solution:
        """Codes and scale."""
        refuse_masks(problem, self)
        weight = problem.weight
        scale = self.scale * problem.factor * root_mean_square(weight)
        feedback = feedback_of(problem.statistics, self.damping)
        code = _solved(weight / scale, feedback)
        number_format = Format(
            name="E8_BALL",
            element=integer_element(16, 0),
            parameters=(Parameter(name="scale", field="scale", element=FP32, block=None),),
            decoder=Step(name="ball", settings=(("columns", weight.shape[1]),)),
        )
        codes = {"code": code, "scale": codes_of(scale.reshape(1, 1))}
        return Solution(number_format=number_format, codes=codes)


@jax.jit
def _solved(
    weight: Float32[Array, "rows columns"], feedback: Float32[Array, "columns columns"] | None
) -> UInt16[Array, "rows vectors"]:
    def search(part: Array, weights: Array, group: Array) -> tuple[dict[str, Array], Array]:
        del weights, group
        code, numbers = nearest(part)
        return {"code": code}, numbers

    return by_vectors(weight, feedback, search, DIMENSIONS)["code"].T


@partial(jax.jit)
def nearest(
    targets: Float32[Array, "vectors 8"],
) -> tuple[UInt16[Array, " vectors"], Float32[Array, "vectors 8"]]:
    """Code and numbers of the nearest vector of the ball.

    Example:
      >>> code, numbers = nearest(jnp.full((1, 8), 0.75))
      >>> int(code[0]), numbers[0, :2].tolist()
      (0, [0.75, 0.75])
    """
    table = jnp.asarray(magnitudes())
    odd = jnp.asarray(is_negated_oddly())
    squares = jnp.square(table).sum(1)
    found = []
    for high, shift in ((0, 0.25), (1, -0.25)):
        moved = targets - shift
        size, negative = jnp.abs(moved), moved < 0
        wrong = odd[None, :] != (negative.sum(1) % 2 == 1)[:, None]
        turned = jnp.min(size[:, None, :] * table[None], axis=2)
        distance = squares[None] - 2 * jnp.matmul(size, table.T, precision="highest")
        distance = distance + jnp.where(wrong, 4 * turned, 0) + jnp.square(moved).sum(1)[:, None]
        place = distance.argmin(1)
        worst = jnp.argmin(size * table[place], axis=1)
        turn = jnp.take_along_axis(wrong, place[:, None], 1)
        signs = negative ^ (turn & (jnp.arange(DIMENSIONS)[None] == worst[:, None]))
        weights = jnp.asarray(256 << np.arange(7), jnp.int32)
        code = place + (signs[:, :7].astype(jnp.int32) * weights[None]).sum(1) + (high << 15)
        numbers = jnp.where(signs, -table[place], table[place]) + shift
        found.append((distance.min(1), code, numbers))
    (one, code, numbers), (other, second, others) = found
    code = jnp.where(other < one, second, code).astype(jnp.uint16)
    return code, jnp.where((other < one)[:, None], others, numbers)
