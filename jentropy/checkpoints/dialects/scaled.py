"""Weights that several tools store alike: FP8 with scales of a tensor, rows or blocks; MXFP8."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.formats import blocks

from .weight import Shape, Weight, require_dtype, require_rank, require_shape, whole

ELEMENTS = (formats.FP8_E4M3, formats.FP8_E5M2)
SCALES = (formats.FP32, formats.BF16, formats.FP16, formats.FP8_E8M0)


def is_fp8(array: StoredArray) -> bool:
    """Whether a stored array holds FP8 codes."""
    return any(array.dtype == element.dtype for element in ELEMENTS)


def fp8_element(array: StoredArray, why: str) -> formats.ElementFormat:
    """The element format of an array of FP8."""
    require_dtype(array, [e.dtype for e in ELEMENTS], why)
    return next(e for e in ELEMENTS if e.dtype == array.dtype)


def scale_element(array: StoredArray, why: str) -> formats.ElementFormat:
    """The element format of an array of scales."""
    require_dtype(array, [e.dtype for e in SCALES], why)
    return next(e for e in SCALES if e.dtype == array.dtype)


def block_weight(
    contents: Contents, array: StoredArray, scale: StoredArray, block: Shape, name: str
) -> Weight:
    """A scale for every block of the last two axes."""
    why = f"blocks of {block[0]}x{block[1]} in {contents.declared_in}"
    fmt = formats.FP8_BLOCK.with_parameter(
        "scale", element=scale_element(scale, why), block=block
    ).with_element(fp8_element(array, why))
    require_rank(array, len(block))
    grid = fmt.parameter("scale").grid(array.shape)
    require_shape(scale, [grid], f"{why} of a weight {list(array.shape)}")
    return Weight(
        name=name,
        format=fmt,
        shape=array.shape,
        parts={
            "code": whole(array, fmt.element, array.shape),
            "scale": whole(scale, fmt.parameter("scale").element, grid),
        },
    )


def scaled_weight(contents: Contents, array: StoredArray, scale: StoredArray, name: str) -> Weight:
    """A scale for the tensor, or one for every row."""
    shape = array.shape
    why = f"scales of {contents.declared_in}, weight {list(shape)}"
    element = fp8_element(array, why)
    require_rank(array, 1)
    rows = (*shape[:-1], 1)
    per_tensor = [(), (1,), (1,) * len(shape)]
    require_shape(scale, [*per_tensor, rows, shape[:-1]], why)
    parameter = blocks.scale(
        scale_element(scale, why), None if scale.shape in per_tensor else blocks.ROW[1:]
    )
    return Weight(
        name=name,
        format=formats.Format(name=element.name, element=element, parameters=(parameter,)),
        shape=shape,
        parts={
            "code": whole(array, element, shape),
            parameter.name: whole(scale, parameter.element, parameter.grid(shape)),
        },
    )


def mx_weight(contents: Contents, array: StoredArray, scale: StoredArray, name: str) -> Weight:
    """FP8 with an E8M0 scale, stored as U8 or F8_E8M0, for every 32 weights of a row."""
    why = f"MXFP8 in {contents.declared_in}, weight {list(array.shape)}"
    fmt = formats.MXFP8.with_element(fp8_element(array, why))
    require_dtype(scale, [np.uint8, ml_dtypes.float8_e8m0fnu], why)
    require_rank(array, 1)
    grid = fmt.parameter("scale").grid(array.shape)
    require_shape(scale, [grid], why)
    return Weight(
        name=name,
        format=fmt,
        shape=array.shape,
        parts={
            "code": whole(array, fmt.element, array.shape),
            "scale": whole(scale, formats.FP8_E8M0, grid),
        },
    )
