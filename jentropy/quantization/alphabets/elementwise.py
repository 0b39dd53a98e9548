"""Alphabets of numbers: a `Format`, whose scales and codes others find."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from jentropy.formats import Format, dequantize
from jentropy.quantization import distortions
from jentropy.quantization.grid import Grid
from jentropy.quantization.problem import Problem, Solution

from .alphabet import Alphabet


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise(Alphabet):
    """An alphabet in which every weight has a code of its own."""

    @abc.abstractmethod
    def formats(self, columns: int) -> tuple[Format, ...]:
        """What it may be for a matrix of so many columns; where there are several, the one with
        the least weighted error is taken."""

    def solve(self, problem: Problem) -> Solution:
        """Scales, then codes."""
        solutions = [self.express(problem, one) for one in self.formats(problem.weight.shape[1])]
        if len(solutions) == 1:
            return solutions[0]
        return min(solutions, key=lambda one: _error(one, problem))

    def express(self, problem: Problem, number_format: Format) -> Solution:
        """The matrix in one format."""
        weight, statistics = problem.weight, problem.statistics
        parameters = problem.scales.fit(weight, statistics, number_format, problem.factor)
        grid = Grid(number_format=number_format, parameters=parameters)
        code = problem.rounding.round(weight, grid, statistics, problem.mask, problem.drawn())
        return Solution(number_format=number_format, codes={"code": code, **parameters})


def _error(solution: Solution, problem: Problem) -> float:
    decoded = dequantize(solution.number_format, solution.codes)
    return float(distortions.weighted(problem.weight, decoded, problem.statistics))
