"""Integers of 2 to 8 and 16 bits with a scale per group, and perhaps a zero point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jentropy.errors import InputError
from jentropy.formats import BF16, WHOLE, ElementFormat, Field, Format
from jentropy.formats.blocks import scale, zero_point

from .elementwise import Elementwise

WIDTHS = (*range(2, 9), 16)


def integer_element(bits: int, excess: int) -> ElementFormat:
    """Integers whose codes are unsigned.

    Args:
      bits: of a code, up to 16.
      excess: what a code is above its number.

    Example:
      >>> integer_element(3, 4).decode(np.uint8([0, 7])).tolist()
      [-4.0, 3.0]
    """
    return ElementFormat(
        name=f"UINT{bits}" + (f"_EXCESS{excess}" if excess else ""),
        dtype=np.dtype(np.uint8 if bits <= 8 else np.uint16),
        fields=(Field(name="code", bits=bits),),
        excess=excess,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer(Elementwise):
    """Integers, from -2^(bits - 1), or from a zero point on.

    Raises:
      InputError: a width that there is not.

    Example:
      >>> Integer(bits=3, group=32).formats(64)[0].allocated_bits((64, 64))
      3.5
    """

    bits: int = 4
    group: int = 128  # columns that share a scale; 0: a row
    symmetric: bool = True
    scale: ElementFormat = BF16

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise InputError("bits of integers", expected=f"one of {WIDTHS}", found=self.bits)

    def formats(self, columns: int) -> tuple[Format, ...]:
        """One format."""
        block = (1, self.group or WHOLE)
        element = integer_element(self.bits, 1 << (self.bits - 1) if self.symmetric else 0)
        zeros = () if self.symmetric else (zero_point(element, block),)
        parameters = (scale(self.scale, block), *zeros)
        return (Format(name=f"INT{self.bits}", element=element, parameters=parameters),)
