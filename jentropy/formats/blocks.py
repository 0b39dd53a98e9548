"""Block formats, as their specifications and commonest writers have them.

    FP8_ROW    E4M3, an FP32 scale per row; in reports FP8_E4M3
    FP8_BLOCK  E4M3, an FP32 scale per 128x128
    MXFP8      E4M3, an E8M0 scale per 32
    MXFP4      E2M1, an E8M0 scale per 32
    NVFP4      E2M1, an E4M3 scale per 16, an FP32 scale per tensor; `NVFP4_DIVISOR` where that
               divides
    INT8       a BF16 scale per row
    INT4       a BF16 scale per 128; `ASYMMETRIC_INT4` with a zero point

A dialect or a user changes blocks and scale formats with `Format.with_parameter`.

References:
  OCP Microscaling Formats (MX) Specification, version 1.0; DeepSeek-V3 technical report,
  arXiv 2412.19437, section 3.3; NVIDIA, "Introducing NVFP4", 2025.
"""

from __future__ import annotations

from .element import ElementFormat
from .floats import BF16, FP4_E2M1, FP8_E4M3, FP8_E8M0, FP32
from .format import WHOLE, Format, Parameter, Role
from .integers import INT4, INT8, UINT4

ROW = (1, WHOLE)


def scale(element: ElementFormat, block: tuple[int, ...] | None) -> Parameter:
    """A scale of blocks of weights, or of a whole tensor (None).

    Example:
      >>> scale(FP32, (128, 128)).name, scale(FP32, None).name
      ('scale', 'tensor_scale')
    """
    field = "tensor_scale" if block is None else "scale"
    return Parameter(name=field, field=field, element=element, block=block)


def zero_point(element: ElementFormat, block: tuple[int, ...] | None) -> Parameter:
    """What is subtracted from an integer before it is scaled.

    Example:
      >>> zero_point(UINT4, (128,)).role
      <Role.ZERO_POINT: 'is subtracted before scaling'>
    """
    return Parameter(
        name="zero_point", field="zero_point", element=element, block=block, role=Role.ZERO_POINT
    )


def tensor_scale_of_scales(role: Role = Role.SCALE) -> Parameter:
    """NVFP4's second level: one number that multiplies, or divides, all scales of a tensor."""
    return Parameter(
        name="tensor_scale",
        field="tensor_scale",
        element=FP32,
        block=None,
        role=role,
        of="scale",
    )


FP8_BLOCK = Format(name="FP8_BLOCK", element=FP8_E4M3, parameters=(scale(FP32, (128, 128)),))
MXFP8 = Format(name="MXFP8", element=FP8_E4M3, parameters=(scale(FP8_E8M0, (32,)),))
MXFP4 = Format(name="MXFP4", element=FP4_E2M1, parameters=(scale(FP8_E8M0, (32,)),))
NVFP4 = Format(
    name="NVFP4",
    element=FP4_E2M1,
    parameters=(scale(FP8_E4M3, (16,)), tensor_scale_of_scales()),
)
NVFP4_DIVISOR = NVFP4.with_parameter("tensor_scale", role=Role.DIVISOR)
FP8_ROW = Format(name="FP8_E4M3", element=FP8_E4M3, parameters=(scale(FP32, ROW),))
INT8_ROW = Format(name="INT8", element=INT8, parameters=(scale(BF16, ROW),))
INT4_GROUP = Format(name="INT4", element=INT4, parameters=(scale(BF16, (128,)),))
ASYMMETRIC_INT4 = Format(
    name="INT4",
    element=UINT4,
    parameters=(scale(BF16, (128,)), zero_point(UINT4, (128,))),
)
