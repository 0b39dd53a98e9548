"""A number format: an element, and the parameters that blocks of elements share.

A block format is an element format, and for each parameter (scale, zero point, scale of the scales)
its own element format and the block that one of them serves. With e the element's number,

    weight = (e - zero_point) * scale - offset

where every parameter may have parameters of its own: NVFP4's scale is an E4M3 code times the
tensor's FP32 scale. A decoder other than `elementwise` makes the numbers e of the codes in another
way (from a table of the tensor's own, or as vectors), and transforms undo, last one first, what was
done to the weight before it was quantised.

A parameter's array has the weight's rank; along each axis it has an entry per block, the last block
being cut off where it sticks out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from jentropy.errors import InputError

from .decoders import DECODERS, Decoder
from .element import ElementFormat
from .step import ELEMENTWISE, SideArray, Step
from .transforms import TRANSFORMS

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

    Invariants: names of parameters and of the steps' arrays differ from each other and from `code`;
    `of` names another parameter, which acts on the weight itself; steps are what `DECODERS` and
    `TRANSFORMS` say.

    Example:
      >>> from jentropy.formats import MXFP4
      >>> narrower = MXFP4.with_parameter("scale", block=(16,))
      >>> MXFP4.allocated_bits((4, 64)), narrower.allocated_bits((4, 64))
      (4.25, 4.5)
    """

    name: str  # in reports
    element: ElementFormat
    parameters: tuple[Parameter, ...] = ()
    decoder: Step = ELEMENTWISE
    transforms: tuple[Step, ...] = ()  # in the order in which they were done

    def __post_init__(self) -> None:
        roots = [p.name for p in self.parameters if p.of is None]
        names = ["code", *(p.name for p in self.beside)]
        if len(set(names)) != len(names) or any(
            p.of not in (None, *roots) for p in self.parameters
        ):
            raise ValueError(f"{self.name}: parameters {names}")
        for what, table, steps in (
            ("decoder", DECODERS, (self.decoder,)),
            ("transform", TRANSFORMS, self.transforms),
        ):
            for step in steps:
                known = table.get(step.name)
                if known is None:
                    raise ValueError(f"{self.name}: {what} {step.name!r} of {list(table)}")
                step.has(what, known.settings, known.arrays)
        sound = self._decoder.is_sound(self.decoder, self.element)
        if not sound or not all(TRANSFORMS[t.name].is_sound(t) for t in self.transforms):
            raise ValueError(f"{self.name}: steps {(self.decoder, *self.transforms)!r:.500}")

    @property
    def _decoder(self) -> Decoder:
        return DECODERS[self.decoder.name]

    @property
    def is_elementwise(self) -> bool:
        """Whether every code is a number by itself, which parameters scale, and that is all."""
        return self.decoder == ELEMENTWISE and not self.transforms

    @property
    def is_by_rows(self) -> bool:
        """Whether every row of a matrix means the same without the others, but for parameters."""
        return self._decoder.by_rows and not self.transforms

    @property
    def is_plain(self) -> bool:
        """Whether codes are the bits of numbers of the element's dtype, and that is all."""
        own = self.element.table is not None or self.element.is_minifloat
        return self.is_elementwise and not self.parameters and not own

    @property
    def side_arrays(self) -> tuple[SideArray, ...]:
        """Arrays of the decoder and of the transforms."""
        return tuple(a for step in (self.decoder, *self.transforms) for a in step.arrays)

    @property
    def beside(self) -> tuple[Parameter | SideArray, ...]:
        """All that lies beside the codes."""
        return (*self.parameters, *self.side_arrays)

    def shape(self, of_codes: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the weight of codes of a shape."""
        return self._decoder.shape(self.decoder, of_codes)

    def code_shape(self, of_weight: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the codes of a weight of a shape."""
        return self._decoder.code_shape(self.decoder, of_weight)

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
        """Bits of a weight; parameters and tables spread over the weights that they serve."""
        weights, stack = math.prod(shape), math.prod(shape[:-2])
        if not weights:
            return float(self.element.code_bits)
        codes = self.element.code_bits * math.prod(self.code_shape(shape))
        shared = sum(p.element.code_bits * math.prod(p.grid(shape)) for p in self.parameters)
        tables = sum(a.element.code_bits * math.prod(a.shape) for a in self.side_arrays)
        return (codes + shared + stack * tables) / weights


def expect_format(found: Any) -> None:
    """Raises unless it is a `Format`: a name in its place is told which was meant.

    Args:
      found: anything.

    Raises:
      InputError: something else.

    Example:
      >>> expect_format("MXFP8")
      Traceback (most recent call last):
        ...
      jentropy.errors.InputError: format: expected a formats.Format, found 'MXFP8' (formats.MXFP8)
    """
    if not isinstance(found, Format):
        hint = f"formats.{found}" if isinstance(found, str) and found.isidentifier() else None
        told = f"{found!r:.60}"
        raise InputError("format", expected="a formats.Format", found=told, hint=hint)
