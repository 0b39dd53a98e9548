"""Several alphabets, of which each matrix takes the one that loses least: LLM-FP4's search.

References:
  Liu et al. 2023, LLM-FP4, arXiv 2310.16836 (exponent, mantissa and bias by search; a bias that is
  real is a scale).
"""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.formats import Format

from .elementwise import Elementwise


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOf(Elementwise):
    """The best of several, by weighted error.

    Example:
      >>> from jentropy.quantization.alphabets import Minifloat
      >>> kinds = tuple(Minifloat(exponent=e, mantissa=3 - e) for e in (1, 2, 3))
      >>> [told.name for told in BestOf(alphabets=kinds).formats(64)]
      ['FP4_E1M2', 'FP4_E2M1', 'FP4_E3M0']
    """

    alphabets: tuple[Elementwise, ...]

    def formats(self, columns: int) -> tuple[Format, ...]:
        """Those of all."""
        return tuple(one for alphabet in self.alphabets for one in alphabet.formats(columns))
