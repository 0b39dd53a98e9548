"""What an alphabet is."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from jentropy.quantization.problem import Problem, Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Alphabet(abc.ABC):
    """A set of numbers, or vectors of numbers, and how weights are expressed in it.

    Example:
      >>> from jentropy.quantization import ALPHABETS
      >>> issubclass(ALPHABETS["format"], Alphabet)
      True
    """

    @abc.abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """Codes of a matrix.

        Args:
          problem: what there is to express; a larger `factor` is to give coarser numbers.

        Returns:
          Codes whose `dequantize` is close to the weight, and 0 wherever the mask is False.
        """
