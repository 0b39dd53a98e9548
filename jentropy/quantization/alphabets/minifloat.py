"""Floats of any exponent and mantissa: FP6 (E2M3, E3M2), 1/6/9, 12 bits (1/5/6, 1/4/7), FP4's kin.

References:
  OCP Microscaling Formats (MX) Specification, version 1.0 (FP6); Xia et al. 2024, FP6-LLM, arXiv
  2401.14112; Agrawal et al. 2019, DLFloat (1/6/9).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jentropy.formats import BF16, WHOLE, ElementFormat, Field, Format
from jentropy.formats.blocks import scale

from .elementwise import Elementwise


def minifloat_element(exponent: int, mantissa: int, bias: int | None = None) -> ElementFormat:
    """A float of a sign, an exponent and a mantissa, finite in all codes, with subnormals.

    Args:
      exponent, mantissa: bits.
      bias: of the exponent; None: 2^(exponent - 1) - 1, and at least 1.

    Example:
      >>> minifloat_element(2, 3).decode(np.uint8([1, 31, 63])).tolist()
      [0.125, 7.5, -7.5]
    """
    told = max(1, (1 << (exponent - 1)) - 1)
    bias = told if bias is None else bias
    bits = 1 + exponent + mantissa
    mantissas = (Field(name="mantissa", bits=mantissa),) if mantissa else ()
    return ElementFormat(
        name=f"FP{bits}_E{exponent}M{mantissa}" + (f"_BIAS{bias}" if bias != told else ""),
        dtype=np.dtype(np.uint8 if bits <= 8 else np.uint16),
        fields=(Field(name="sign", bits=1), Field(name="exponent", bits=exponent), *mantissas),
        bias=bias,
    )


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
