"""Which scales and zero points the Hopper layout of scaled codes holds, and how they lie there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax.numpy as jnp
import numpy as np

from jentropy import formats
from jentropy.formats import WHOLE, Format, Parameter, Role
from jentropy.pallas_kernels.hopper import fragments
from jentropy.pallas_kernels.integers import INTEGERS
from jentropy.pallas_kernels.matrices import Matrices

from .elements import ELEMENTS

TILE = 128  # rows and columns are padded to these
SHARED = (
    16  # copies of a number that serves 64 rows: the copy engine moves 128 bytes of two of them
)


class Kind(Enum):
    """How scales reach the weights."""

    ROW = "a number for each row, times its sum over all columns"
    NUMBERS = "numbers times sums over a group of columns"
    POWERS = "powers of two times the weights, four groups of 32 to a word"
    SIXTEENTHS = "E4M3 times the weights, four groups of 16 to a word"


GROUPS = {Kind.POWERS: 32, Kind.SIXTEENTHS: 16}


def holds(number_format: Format) -> bool:
    """An element of eight or four bits, at most one scale with factors, and one zero point."""
    roots = sorted(p.role.name for p in number_format.parameters if p.of is None)
    names = {p.name for p in number_format.parameters if p.of is None and p.role is Role.SCALE}
    integer = number_format.element.name in INTEGERS
    return (
        number_format.element.name in ELEMENTS
        and roots in ([], ["SCALE"], *([["SCALE", "ZERO_POINT"]] * integer))
        and all(p.role is Role.SCALE and p.of in names for p in number_format.parameters if p.of)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How a weight's scales lie.

    Attributes:
      scale, zero: its parameters, None where it has none.
      kind: of the scales.
      group: columns that share a scale, 32, 64 or 128 if not the kind's; 0: all.
      shared: whether 64 rows share them.
    """

    scale: Parameter | None
    zero: Parameter | None
    kind: Kind
    group: int
    shared: bool

    @classmethod
    def of(cls, weight: Matrices) -> Blocks | None:
        """None for what no kernel reads."""
        if formats.GROUP_INDEX in weight.codes:
            return None
        number_format = weight.number_format
        roots = {p.role: p for p in number_format.parameters if p.of is None}
        scale, zero = roots.get(Role.SCALE), roots.get(Role.ZERO_POINT)
        high, wide = (WHOLE, WHOLE) if scale is None else scale.blocks(2)
        columns = weight.matrix[1]
        factors = [p.blocks(2)[1] for p in number_format.parameters if p.of is not None]
        over_rows = all(f == WHOLE or f >= columns for f in factors)
        kind, group = Kind.NUMBERS, wide
        if wide == WHOLE or wide >= columns:
            kind, group = Kind.ROW, 0
        elif scale is None:
            return None
        elif scale.element.name == "FP8_E8M0" and wide in (32, 64) and not factors:
            kind, group = Kind.POWERS, 32
        elif scale.element.name == "FP8_E4M3" and wide == 16 and over_rows:
            kind, group = Kind.SIXTEENTHS, 16
        elif wide % TILE == 0:
            group = TILE
        elif wide not in (32, 64):
            return None
        if kind in GROUPS and number_format.element.name in INTEGERS:
            return None
        if zero is not None and (
            scale is None
            or zero.blocks(2) != scale.blocks(2)
            or zero.element.name not in INTEGERS
            or (kind is Kind.NUMBERS and number_format.element.code_bits != 4)
        ):
            return None
        shared = kind is Kind.NUMBERS and (high == WHOLE or high % fragments.ROWS == 0)
        return cls(scale=scale, zero=zero, kind=kind, group=group, shared=shared)

    def scale_of(self, rows: int, columns: int, number_format: Format) -> tuple[tuple, Any]:
        """Shape and dtype of the array of scales of groups, for padded rows and columns."""
        high = rows // fragments.ROWS
        if self.kind in GROUPS:
            return (high, columns // (4 * self.group), fragments.ROWS), np.uint32
        if self.shared:
            return (high, columns // self.group, SHARED), np.float32
        factors = any(p.of is not None for p in number_format.parameters)
        exact = self.scale is not None and self.scale.element.name == "BF16" and not factors
        return (high, columns // self.group, fragments.ROWS), jnp.bfloat16 if exact else np.float32
