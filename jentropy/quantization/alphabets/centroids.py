"""A uniform step whose integers mean the centroids of what was rounded to them.

Thresholds are those of the integers, and so are the bits; numbers are closer where a density falls
within a step.

References:
  Sullivan 1996, Efficient scalar quantization of exponential and Laplacian random variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from jentropy.formats import FP16, FP32, UINT8, Format, SideArray, Step, dequantize
from jentropy.formats.blocks import scale
from jentropy.quantization import distortions
from jentropy.quantization.grid import Grid
from jentropy.quantization.problem import Problem, Solution

from .alphabet import Alphabet
from .uniform import UNIFORM

LEVELS, MIDDLE = 256, 128
LEAST = 20  # weights whose mean is worth taking
NAME = "levels"
CENTROIDS = Format(
    name="INT8_CENTROIDS",
    element=UINT8,
    parameters=(scale(FP32, None),),
    decoder=Step(name="levels", arrays=(SideArray(name=NAME, element=FP16, shape=(LEVELS,)),)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Centroids(Alphabet):
    """Integers of eight bits that a table of the tensor gives their numbers.

    Example:
      >>> CENTROIDS.decoder.name
      'levels'
    """

    def solve(self, problem: Problem) -> Solution:
        """Integers as of `Uniform`; centroids unless integers lose less (of what is correlated)."""
        weight, statistics = problem.weight, problem.statistics
        parameters = problem.scales.fit(weight, statistics, UNIFORM, problem.factor)
        grid = Grid(number_format=UNIFORM, parameters=parameters)
        code = problem.rounding.round(weight, grid, statistics, problem.mask, problem.drawn())
        code = code ^ jnp.uint8(MIDDLE)
        solutions = [
            Solution(number_format=CENTROIDS, codes={"code": code, **parameters, NAME: levels})
            for levels in _tables(weight, grid, code, statistics.diagonal)
        ]

        def error(one: Solution) -> float:
            decoded = dequantize(one.number_format, one.codes)
            return float(distortions.weighted(weight, decoded, statistics))

        return min(solutions, key=error)


@jax.jit
def _tables(
    weight: Float32[Array, "rows columns"],
    grid: Grid,
    code: UInt8[Array, "rows columns"],
    power: Float32[Array, " columns"],
) -> tuple[Array, Array]:
    """Codes of centroids, and of integers."""
    unit, _ = grid.affine(weight.shape)
    integers = jnp.arange(LEVELS, dtype=jnp.float32) - MIDDLE
    by_power = jnp.broadcast_to(power[None, :], weight.shape)
    places = code.astype(jnp.int32)
    zeros = jnp.zeros(LEVELS, jnp.float32)
    # What weights are beside their integers: sums of small numbers, which float32 adds well.
    beside = weight / unit - integers[places]
    moved = zeros.at[places].add(beside * by_power) / zeros.at[places].add(by_power)
    enough = (zeros.at[places].add(1.0) > LEAST) & (integers != 0)
    centroids = jnp.where(enough, integers + moved, integers)

    def codes(numbers: Array) -> Array:
        return jax.lax.bitcast_convert_type(numbers.astype(jnp.float16), jnp.uint16)

    return codes(centroids), codes(integers)
