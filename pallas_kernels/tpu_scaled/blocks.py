"""Which elements and blocks the TPU layout of scaled codes holds, and how blocks lie in tiles."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jentropy import formats
from jentropy.formats import WHOLE, ElementFormat, Format, Parameter, Role
from jentropy.pallas_kernels.integers import INTEGERS, is_integer
from jentropy.pallas_kernels.matrices import Matrices
from jentropy.pallas_kernels.tiles import LANES, ceil_to, choose_tile

TILE_ROWS = (2048, 1536, 2560, 1024, 512)
TILE_COLUMNS = 2048  # at the most, and a multiple of blocks of columns
GROUPS = tuple(32 << i for i in range(7))  # rows of a group
FLOATS = {"FP8_E4M3", "FP8_E5M2"}
NIBBLE = 4


def holds(number_format: Format) -> bool:
    """An element of eight or four bits, at most one scale with factors, and one zero point."""
    roots = [p for p in number_format.parameters if p.of is None]
    return (
        number_format.element.name in (FLOATS | INTEGERS.keys())
        and sorted(p.role.name for p in roots)
        in ([], ["SCALE"], *([["SCALE", "ZERO_POINT"]] * is_integer(number_format.element)))
        and all(p.role is Role.SCALE for p in number_format.parameters if p.of is not None)
        and all(p.of in (None, "scale", "tensor_scale") for p in number_format.parameters)
    )


def per_word(element: ElementFormat) -> int:
    """Codes of a word."""
    return 32 // element.code_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How a weight's blocks lie in tiles.

    Attributes:
      scale, zero: its parameters, None where it has none.
      group, block: rows and columns that share a scale; 0: all rows, or all columns.
      tile_rows: of a tile.
      grid: steps along the rows, and groups of a step.
    """

    scale: Parameter | None
    zero: Parameter | None
    group: int
    block: int
    tile_rows: int
    grid: tuple[int, int]

    @classmethod
    def of(cls, weight: Matrices) -> Blocks | None:
        """None for blocks that tiles do not hold."""
        if formats.GROUP_INDEX in weight.codes:
            return None
        number_format, (rows, _) = weight.number_format, weight.matrix
        roots = {p.role: p for p in number_format.parameters if p.of is None}
        scale, zero = roots.get(Role.SCALE), roots.get(Role.ZERO_POINT)
        blocks = (WHOLE, WHOLE) if scale is None else scale.blocks(2)
        group, block = (0 if b >= n else b for b, n in zip(blocks, weight.matrix, strict=True))
        if (group and group not in GROUPS) or (zero and zero.blocks(2) != blocks):
            return None
        if scale is not None and scale.element.name == "FP8_E8M0" and not group:
            return None
        if zero is not None and zero.element.name not in INTEGERS:
            return None
        halves = 2 if number_format.element.code_bits == NIBBLE else 1
        tile_rows = choose_tile(
            rows, [t for t in TILE_ROWS if not group or t // halves % group == 0]
        )
        groups = ceil_to(rows, tile_rows) // group if group else 1
        steps = groups * group // tile_rows if group else 1
        grid = steps, groups // steps
        return cls(scale=scale, zero=zero, group=group, block=block, tile_rows=tile_rows, grid=grid)

    @property
    def wide(self) -> int:
        """Columns that share a stored scale; 0: every column has one."""
        if self.scale is None or self.scale.element.name == "FP8_E8M0":
            return 0
        fits = self.block and self.block % LANES == 0 and TILE_COLUMNS % self.block == 0
        return self.block if fits else 0

    def scale_dtype(self, number_format: Format) -> np.dtype:
        """E8M0 codes; numbers in bfloat16 if that is all that they are, else in float32."""
        if self.scale is None:
            return np.dtype(np.float32)
        if self.scale.element.name == "FP8_E8M0":
            return np.dtype(np.uint8)
        factors = any(p.of is not None for p in number_format.parameters)
        exact = self.scale.element.name == "BF16" and not factors
        return np.dtype(jnp.bfloat16 if exact else np.float32)
