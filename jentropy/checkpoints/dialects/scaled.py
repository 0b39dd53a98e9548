"""Weights that several tools store alike: FP8 with scales of a tensor, rows or blocks, and others.

A module that a quantiser excludes may still hold what the base model's had made of it: FP8 with
`X.weight_scale_inv` (DeepSeek-V3) or an E8M0 `X.scale` (V4), whose blocks are 128x128 unless the
config says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np

from jentropy import formats

from .settings import block_pair
from .weight import (
    Contents,
    Groups,
    Packed,
    Shape,
    Stored,
    StoredArray,
    Tensor,
    assemble,
    find,
    require_dtype,
    require_rank,
    require_shape,
)

ELEMENTS = (formats.FP8_E4M3, formats.FP8_E5M2)
BLOCK, BASE_BLOCK = "weight_block_size", [128, 128]  # unless the config of DeepSeek's models says
NVFP4_SCALES = "scale", "scale_2"
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
) -> Tensor:
    """A scale for every block of the last two axes."""
    why = f"blocks of {block[0]}x{block[1]} in {contents.declared_in}"
    number_format = formats.FP8_BLOCK.with_parameter(
        "scale", element=scale_element(scale, why), block=block
    ).with_element(fp8_element(array, why))
    return assemble(name, number_format, array.shape, {"code": array, "scale": scale}, why)


def base_scale(contents: Contents, array: StoredArray) -> StoredArray | None:
    """The scale that the base model's quantiser gave an FP8 weight, if there is one."""
    if not is_fp8(array):
        return None
    scale = contents.arrays.get(f"{array.name}_scale_inv")
    if scale is None and array.name.endswith(WEIGHT):
        scale = contents.arrays.get(f"{array.name.removesuffix(WEIGHT)}.scale")
    return scale


def base_weight(contents: Contents, array: StoredArray, scale: StoredArray) -> Tensor:
    """A weight as the base model's quantiser left it."""
    if scale.shape in ((), (1,)):
        return scaled_weight(contents, array, scale, array.name)
    declared = (contents.quantization or {}).get(BLOCK, BASE_BLOCK)
    return block_weight(contents, array, scale, block_pair(declared, BLOCK, contents), array.name)


def fp4_weight(
    name: str,
    number_format: formats.Format,
    array: StoredArray,
    scale: Stored,
    level: StoredArray | None,
    why: str,
    *,
    axis: int = -1,
) -> Tensor:
    """E2M1 codes in pairs along an axis, low half first, and the scales of their blocks.

    Args:
      number_format: with the blocks.
      level: the scale of the scales: one, or one for each expert of a stack.
    """
    require_dtype(array, [np.uint8, np.int8], why)
    require_rank(array, -axis)
    shape = (
        *array.shape[:axis],
        2 * array.shape[axis],
        *array.shape[len(array.shape) + axis + 1 :],
    )
    stored = {"code": (array, Packed(axis=axis)), "scale": scale}
    if level is None:
        number_format = replace(number_format, parameters=number_format.parameters[:1])
    else:
        stored["tensor_scale"] = level
        is_stack = len(shape) > 2 and math.prod(level.shape) != 1
        block = (formats.WHOLE,) * (len(shape) - 1) if is_stack else None
        number_format = number_format.with_parameter("tensor_scale", block=block)
    return assemble(name, number_format, shape, stored, why)


def nvfp4_weight(contents: Contents, array: StoredArray) -> Tensor:
    """ModelOpt's NVFP4: U8 [N, K / 2]; X_scale F8_E4M3 [N, K / 16]; X_scale_2 F32 []."""
    scale, level = (find(contents, f"{array.name}_{key}", array.name) for key in NVFP4_SCALES)
    return fp4_weight(array.name, formats.NVFP4, array, scale, level, "NVFP4 in groups of 16")


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


def scaled_weight(contents: Contents, array: StoredArray, scale: StoredArray, name: str) -> Tensor:
    """A scale for the tensor, or one for every row or column."""
    shape, why = array.shape, f"scales of {contents.declared_in}"
    element = fp8_element(array, why)
    require_rank(array, 1)
    rows = (*shape[:-1], 1)
    per_tensor = [(), (1,), (1,) * len(shape)]
    columns = (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else rows
    allowed = [*per_tensor, rows, shape[:-1], columns]
    require_shape(scale, allowed, f"{why}, weight {list(shape)}")
    block: Shape | None = (
        formats.blocks.ROW[1:] if scale.shape in (rows, shape[:-1]) else (formats.WHOLE, 1)
    )
    block = None if scale.shape in per_tensor else block
    stored: dict[str, Stored] = {"code": array, "scale": scale}
    return linear_weight(name, element, shape, stored, block, why, named=element.name)


def linear_weight(
    name: str,
    element: formats.ElementFormat,
    shape: Shape,
    stored: Mapping[str, Stored],
    block: Shape | None,
    why: str,
    *,
    named: str = "",
    index: StoredArray | None = None,
    settled: tuple[StoredArray, ...] = (),
) -> Tensor:
    """Numbers times the scale of their block, less its zero point if there are any.

    Args:
      stored: `code`, `scale` and perhaps `zero_point`.
      block: weights along the last axes that a scale serves; None: all.
      named: the format in reports; unless told, integers of so many bits.
      index: the group of each column, where groups are no runs.
    """
    scale = stored["scale"]
    array = scale[0] if isinstance(scale, tuple) else scale
    parameters = [formats.blocks.scale(scale_element(array, why), block)]
    if "zero_point" in stored:
        parameters.append(formats.blocks.zero_point(element, block))
    stored = {parameters[0].name if key == "scale" else key: at for key, at in stored.items()}
    if index is not None:
        stored[formats.GROUP_INDEX] = index, Groups(groups=parameters[0].grid(shape)[-1])
    number_format = formats.Format(
        name=named or f"INT{element.code_bits}", element=element, parameters=tuple(parameters)
    )
    return assemble(name, number_format, shape, stored, why, settled)


def find_index(
    contents: Contents, key: str, of: str, cut: Shape | None, columns: int, *, is_reordered: bool
) -> StoredArray | None:
    """The group of each column; it has to be there where several groups are no runs."""
    if is_reordered and cut and 0 < cut[-1] < columns:
        return find(contents, key, of)
    return contents.arrays.get(key)


def mx_weight(contents: Contents, array: StoredArray, scale: StoredArray, name: str) -> Tensor:
    """FP8 with an E8M0 scale, stored as U8 or F8_E8M0, for every 32 weights of a row."""
    why = f"MXFP8 in {contents.declared_in}"
    number_format = formats.MXFP8.with_element(fp8_element(array, why))
    return assemble(name, number_format, array.shape, {"code": array, "scale": scale}, why)


def mxfp4_weight(array: StoredArray, scale: StoredArray, why: str) -> Tensor:
    """E2M1 codes in pairs, and a power of two for 32 columns.

    Args:
      why: what declares it.
    """
    return fp4_weight(array.name, formats.MXFP4, array, scale, None, why)
