"""Signs, or signs and zero, times a scale: BitNet and BitNet b1.58."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jentropy.formats import BF16, FP32, ElementFormat, Field, Format
from jentropy.formats.blocks import scale

from .elementwise import Elementwise

SIGN = ElementFormat(
    name="SIGN",
    dtype=np.dtype(np.uint8),
    fields=(Field(name="code", bits=1),),
    table=(-1.0, 1.0),
)
TERNARY = ElementFormat(
    name="TERNARY",
    dtype=np.dtype(np.uint8),
    fields=(Field(name="code", bits=2),),
    table=(-1.0, 0.0, 1.0, 1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs(Elementwise):
    """-1 and 1, and perhaps 0.

    Example:
      >>> Signs(ternary=True).formats(64)[0].name
      'TERNARY'
    """

    ternary: bool = False
    group: int | None = None  # columns that share a scale; None: all of the matrix

    def formats(self, columns: int) -> tuple[Format, ...]:
        """One format."""
        element = TERNARY if self.ternary else SIGN
        own = scale(FP32, None) if self.group is None else scale(BF16, (1, self.group))
        return (Format(name=element.name, element=element, parameters=(own,)),)
