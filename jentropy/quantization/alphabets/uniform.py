"""A uniform step: integers of eight bits, which an entropy coder stores, and one scale a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.formats import FP32, INT8, Format
from jentropy.formats.blocks import scale

from .elementwise import Elementwise

UNIFORM = Format(name="INT8", element=INT8, parameters=(scale(FP32, None),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(Elementwise):
    """Multiples of a step; how many bits they take, its size decides.

    Example:
      >>> Uniform().formats(64)[0].allocated_bits((64, 64))
      8.0078125
    """

    def formats(self, columns: int) -> tuple[Format, ...]:
        """Integers of eight bits with a scale per tensor."""
        return (UNIFORM,)
