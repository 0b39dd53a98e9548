"""Another alphabet's solution, and what makes up for a part of its error.

LoRC (Z. Yao et al., ZeroQuant-V2, 2023; X. Wu et al., ZeroQuant-FP, 2023) adds the closest matrix
of a low rank. ARCQuant (H. Meng et al., arXiv 2601.07475, 2026) appends, for channels whose inputs
are outliers, what rounding left of these inputs; here it is the weights of such columns that have a
second number in as few bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jentropy.formats import FP4_E2M1, FP8_E8M0, Format, QuantizedTensor, SideArray, Step, quantize
from jentropy.formats.blocks import scale
from jentropy.quantization.problem import Problem, Solution
from jentropy.quantization.transforms import kept
from jentropy.quantization.transforms.low_rank import branch

from .alphabet import Alphabet


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankCorrected(Alphabet):
    """With a matrix of low rank in BF16.

    Attributes:
      alphabet: of what it corrects.
      rank: of the correction.
    """

    alphabet: Alphabet
    rank: int = 8

    def solve(self, problem: Problem) -> Solution:
        """The other's solution and a step more."""
        solution = self.alphabet.solve(problem)
        error = problem.weight - _numbers(solution)
        step, codes, _ = branch(
            error, problem.statistics, self.rank, problem.drawn(), "correction_"
        )
        return _with(solution, step, codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualColumns(Alphabet):
    """With a second number for some columns, MXFP4's.

    Attributes:
      alphabet: of what it corrects.
      share: of the columns, rounded up to whole blocks.
      block: columns that share a scale, for each row.
    """

    alphabet: Alphabet
    share: float = 0.05
    block: int = 16

    def solve(self, problem: Problem) -> Solution:
        """The other's solution and a step more."""
        solution = self.alphabet.solve(problem)
        error, told = problem.weight - _numbers(solution), problem.statistics
        columns = error.shape[1]
        count = min(columns, -(-round(self.share * columns) // self.block) * self.block or 1)
        lost = jnp.square(error).sum(0) * jnp.square(jnp.asarray(told.largest))
        places = jnp.sort(jnp.argsort(-lost, stable=True)[:count])
        second = Format(
            name="SECOND", element=FP4_E2M1, parameters=(scale(FP8_E8M0, (self.block,)),)
        )
        found = quantize(error[:, places], second)
        own, codes = kept.whole("second_places", places, kept.places_dtype(columns))
        arrays = (
            own,
            SideArray(name="second_code", element=FP4_E2M1, shape=found["code"].shape),
            SideArray(name="second_scale", element=FP8_E8M0, shape=found["scale"].shape),
        )
        step = Step(name="residual_columns", settings=(("block", self.block),), arrays=arrays)
        beside = {
            own.name: codes,
            "second_code": found["code"],
            "second_scale": found["scale"],
        }
        return _with(solution, step, beside)


def _numbers(solution: Solution) -> jax.Array:
    whole = QuantizedTensor(number_format=solution.number_format, codes=solution.codes)
    return whole.dequantize()


def _with(solution: Solution, step: Step, codes: dict[str, jax.Array]) -> Solution:
    told = solution.number_format
    return Solution(
        number_format=replace(told, transforms=(step, *told.transforms)),
        codes={**solution.codes, **codes},
    )
