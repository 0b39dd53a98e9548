"""A number format: an element, and the parameters that blocks of elements share.

A block format is an element format, and for each parameter (scale, zero point, scale of the scales)
its own element format and the block that one of them serves. With e the element's number,

    weight = (e - zero_point) * scale - offset

where every parameter may have parameters of its own: NVFP4's scale is an E4M3 code times the
tensor's FP32 scale. A parameter's array has the weight's rank; along each axis it has an entry per
block, the last block being cut off where it sticks out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from .element import ElementFormat

WHOLE = 0  # in a block: the whole of that axis


class Role(Enum):
    """What a parameter does.

    Example:
      >>> Role.SCALE.value
      'multiplies'
    """

    SCALE = "multiplies"
    DIVISOR = "divides"
    ZERO_POINT = "is subtracted before scaling"
    OFFSET = "is subtracted after scaling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A number that a block of weights shares.

    Attributes:
      name: its key among the arrays of a tensor.
      field: the field of the entropy report that it counts in: scale, zero_point or tensor_scale.
      element: its own element format.
      block: weights along the last axes that one entry serves, WHOLE for all of an axis; an axis
        before those has an entry each. None: one entry for the whole tensor.
      role: what it does.
      of: the parameter that it acts on; None: the weight.

    Example:
      >>> from jentropy.formats import MXFP4
      >>> scale = MXFP4.parameter("scale")  # of 32 weights
      >>> scale.blocks(3), scale.grid((2, 5, 100))
      ((1, 1, 32), (2, 5, 4))
    """

    name: str
    field: str
    element: ElementFormat
    block: tuple[int, ...] | None
    role: Role = Role.SCALE
    of: str | None = None

    def blocks(self, rank: int) -> tuple[int, ...]:
        """Weights along each axis that one entry serves."""
        if self.block is None:
            return (WHOLE,) * rank
        if len(self.block) > rank:
            raise ValueError(f"{self.name}: blocks {self.block} of {rank} axes")
        return (1,) * (rank - len(self.block)) + self.block

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the parameter's array for weights of a shape."""
        blocks = self.blocks(len(shape))
        return tuple(
            1 if block == WHOLE else -(-n // block) for n, block in zip(shape, blocks, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A number format.

    Invariants: the parameters' names differ from each other and from `code`; `of` names another
    of them, which acts on the weight itself.

    Example:
      >>> from jentropy.formats import MXFP4
      >>> narrower = MXFP4.with_parameter("scale", block=(16,))
      >>> MXFP4.allocated_bits((4, 64)), narrower.allocated_bits((4, 64))
      (4.25, 4.5)
    """

    name: str  # in reports
    element: ElementFormat
    parameters: tuple[Parameter, ...] = ()

    def __post_init__(self) -> None:
        roots = [p.name for p in self.parameters if p.of is None]
        names = ["code", *(p.name for p in self.parameters)]
        if len(set(names)) != len(names) or any(
            p.of not in (None, *roots) for p in self.parameters
        ):
            raise ValueError(f"{self.name}: parameters {names}")

    def parameter(self, name: str) -> Parameter:
        """A parameter by name."""
        return next(p for p in self.parameters if p.name == name)

    def with_parameter(self, name: str, **changes: Any) -> Format:
        """The same format with a parameter of another block or element."""
        parameters = tuple(replace(p, **changes) if p.name == name else p for p in self.parameters)
        return replace(self, parameters=parameters)

    def with_element(self, element: ElementFormat) -> Format:
        """The same format of another element."""
        return replace(self, element=element)

    def allocated_bits(self, shape: tuple[int, ...]) -> float:
        """Bits of a weight, parameters spread over the weights that they serve."""
        weights = math.prod(shape)
        shared = sum(p.element.code_bits * math.prod(p.grid(shape)) for p in self.parameters)
        return self.element.code_bits + (shared / weights if weights else 0.0)
