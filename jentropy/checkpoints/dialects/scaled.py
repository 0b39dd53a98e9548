"""Weights that several tools store alike: FP8 with scales of a tensor, rows or blocks, and others.

A module that a quantiser excludes may still hold what the base model's had made of it: FP8 with
`X.weight_scale_inv` (DeepSeek-V3) or an E8M0 `X.scale` (V4), whose blocks are 128x128 unless the
config says otherwise.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.formats import WHOLE, blocks

from .weight import (
    Shape,
    Weight,
    block_size,
    find,
    packed,
    require_dtype,
    require_rank,
    require_shape,
    whole,
)

ELEMENTS = (formats.FP8_E4M3, formats.FP8_E5M2)
BASE_BLOCK = [128, 128]  # of DeepSeek's models
WEIGHT = ".weight"
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


def base_scale(contents: Contents, array: StoredArray) -> StoredArray | None:
    """The scale that the base model's quantiser gave an FP8 weight, if there is one."""
    if not is_fp8(array):
        return None
    scale = contents.arrays.get(f"{array.name}_scale_inv")
    if scale is None and array.name.endswith(WEIGHT):
        scale = contents.arrays.get(f"{array.name.removesuffix(WEIGHT)}.scale")
    return scale


def base_weight(contents: Contents, array: StoredArray, scale: StoredArray) -> Weight:
    """A weight as the base model's quantiser left it."""
    if scale.shape in ((), (1,)):
        return scaled_weight(contents, array, scale, array.name)
    block = block_size(contents, "weight_block_size", default=BASE_BLOCK)
    return block_weight(contents, array, scale, block, array.name)


def nvfp4_weight(contents: Contents, array: StoredArray, size: int = 16) -> Weight:
    """ModelOpt's NVFP4: U8 [N, K / 2]; X_scale F8_E4M3 [N, K / size]; X_scale_2 F32 []."""
    name, shape = array.name, (*array.shape[:-1], 2 * array.shape[-1])
    why = f"NVFP4 in groups of {size}, weight {list(shape)}"
    require_dtype(array, [np.uint8], why)
    scale, level = (find(contents, f"{name}_{key}", name) for key in ("scale", "scale_2"))
    require_dtype(scale, [ml_dtypes.float8_e4m3fn], why)
    require_dtype(level, [np.float32], why)
    require_shape(level, [(), (1,)], why)
    fmt = formats.NVFP4.with_parameter("scale", block=(size,))
    grid = fmt.parameter("scale").grid(shape)
    require_shape(scale, [grid], why)
    return Weight(
        name=name,
        format=fmt,
        shape=shape,
        parts={
            "code": packed(array, formats.FP4_E2M1),
            "scale": whole(scale, formats.FP8_E4M3, grid),
            "tensor_scale": whole(level, formats.FP32, (1,) * len(shape)),
        },
    )


def is_nvfp4(contents: Contents, array: StoredArray) -> bool:
    """Whether bytes have the two levels of scales that nothing but NVFP4 has."""
    scale = contents.arrays.get(f"{array.name}_scale")
    return (
        array.dtype == np.uint8
        and len(array.shape) > 0
        and scale is not None
        and scale.dtype == ml_dtypes.float8_e4m3fn
        and f"{array.name}_scale_2" in contents.arrays
    )


def scaled_weight(contents: Contents, array: StoredArray, scale: StoredArray, name: str) -> Weight:
    """A scale for the tensor, or one for every row or column."""
    shape = array.shape
    why = f"scales of {contents.declared_in}, weight {list(shape)}"
    element = fp8_element(array, why)
    require_rank(array, 1)
    rows = (*shape[:-1], 1)
    per_tensor = [(), (1,), (1,) * len(shape)]
    columns = (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else rows
    require_shape(scale, [*per_tensor, rows, shape[:-1], columns], why)
    block: Shape | None = blocks.ROW[1:] if scale.shape in (rows, shape[:-1]) else (WHOLE, 1)
    block = None if scale.shape in per_tensor else block
    parameter = blocks.scale(scale_element(scale, why), block)
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


def mxfp4_weight(array: StoredArray, scale: StoredArray, why: str) -> Weight:
    """E2M1 codes in pairs, and a power of two for 32 columns.

    Args:
      why: what declares it.
    """
    require_rank(array, 1)
    shape = (*array.shape[:-1], 2 * array.shape[-1])
    grid = formats.MXFP4.parameter("scale").grid(shape)
    why = f"{why}, weight {list(shape)}"
    require_dtype(scale, [ml_dtypes.float8_e8m0fnu, np.uint8], why)
    require_shape(scale, [grid], why)
    return Weight(
        name=array.name,
        format=formats.MXFP4,
        shape=shape,
        parts={
            "code": packed(array, formats.FP4_E2M1),
            "scale": whole(scale, formats.FP8_E8M0, grid),
        },
    )
