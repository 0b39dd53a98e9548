"""K-quants: blocks whose scales, and offsets, are small integers under FP16 numbers of 256 weights.

    Q2_K  2 bits, blocks of 16, scales and offsets of 4 bits
    Q3_K  3 bits, blocks of 16, scales of 6 bits, centred
    Q4_K  4 bits, blocks of 32, scales and offsets of 6 bits; Q5_K the same of 5 bits
    Q6_K  6 bits, blocks of 16, scales of 8 bits, centred

References:
  ggml, k-quants (ggml-quants.c), 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.errors import InputError
from jentropy.formats import FP16, INT8, Format, Parameter, Role

from .elementwise import Elementwise
from .integer import integer_element

SUPER = 256
# Bits of a code, block, bits of a scale, whether there are offsets.
KINDS = {2: (16, 4, True), 3: (16, 6, False), 4: (32, 6, True), 5: (32, 6, True), 6: (16, 8, False)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperBlocks(Elementwise):
    """One of ggml's K-quants.

    Raises:
      InputError: bits that there is none of.

    Example:
      >>> [SuperBlocks(bits=b).formats(256)[0].allocated_bits((4, 256)) for b in (2, 3, 4, 5, 6)]
      [2.625, 3.4375, 4.5, 5.5, 6.5625]
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in KINDS:
            raise InputError("bits of K-quants", expected=f"one of {[*KINDS]}", found=self.bits)

    def formats(self, columns: int) -> tuple[Format, ...]:
        """One format."""
        block, width, shifted = KINDS[self.bits]
        small = INT8 if width == 8 else integer_element(width, 0 if shifted else 1 << (width - 1))

        def pair(name: str, role: Role) -> tuple[Parameter, ...]:
            field = "zero_point" if role is Role.OFFSET else "scale"
            return (
                Parameter(name=name, field=field, element=small, block=(1, block), role=role),
                Parameter(
                    name=f"super_{name}", field=field, element=FP16, block=(1, SUPER), of=name
                ),
            )

        offsets = pair("offset", Role.OFFSET) if shifted else ()
        element = integer_element(self.bits, 0 if shifted else 1 << (self.bits - 1))
        return (
            Format(
                name=f"Q{self.bits}_K",
                element=element,
                parameters=(*pair("scale", Role.SCALE), *offsets),
            ),
        )
