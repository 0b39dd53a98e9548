"""Floats of any exponent and mantissa: FP6 (E2M3, E3M2), 1/6/9, 12 bits (1/5/6, 1/4/7), FP4's kin.

References:
  OCP Microscaling Formats (MX) Specification, version 1.0 (FP6); Xia et al. 2024, FP6-LLM, arXiv
  2401.14112; Agrawal et al. 2019, DLFloat (1/6/9).
"""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.formats import BF16, WHOLE, ElementFormat, Format
from jentropy.formats.blocks import scale
from jentropy.quantization.minifloats import minifloat_element

from .elementwise import Elementwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Minifloat(Elementwise):
    """Such floats with a scale per group.

    Example:
      >>> Minifloat(exponent=3, mantissa=2, group=32).formats(64)[0].name
      'FP6_E3M2'
    """

    exponent: int
    mantissa: int
    bias: int | None = None
    group: int = 0  # columns that share a scale; 0: a row
    scale: ElementFormat = BF16

    def formats(self, columns: int) -> tuple[Format, ...]:
        """One format."""
        element = minifloat_element(self.exponent, self.mantissa, self.bias)
        parameters = (scale(self.scale, (1, self.group or WHOLE)),)
        return (Format(name=element.name, element=element, parameters=parameters),)
