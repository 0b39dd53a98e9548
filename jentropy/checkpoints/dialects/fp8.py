"""Dialect `fp8`: DeepSeek-V3, Qwen3 and transformers' FP8 quantiser.

    X.weight            F8_E4M3 (or E5M2) [..., N, K]
    X.weight_scale_inv  F32, BF16, F16 or F8_E8M0 [..., ceil(N / bn), ceil(K / bk)]; or
    X.weight_scale      F32 or BF16, one per tensor [] or [1], or per row [N, 1]

A weight is its code times its scale, despite "inv". Block sizes stand in `weight_block_size`, and
are never worked out from shapes: the last block is cut off. Method `mxfp8` has E8M0 scales in U8
for every 32 weights of a row. Stacked experts have `X` and `X_scale_inv`.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.errors import InputError
from jentropy.formats import blocks

from .weight import Shape, Weight, block_size, find, require_dtype, require_shape, whole

NAME = "fp8"
METHODS = ("fp8", "mxfp8")
AUXILIARY = (".input_scale", ".activation_scale", ".k_scale", ".v_scale")
INVERSE, DIRECT = "_scale_inv", "_scale"
ELEMENTS = (formats.FP8_E4M3, formats.FP8_E5M2)
SCALES = (formats.FP32, formats.BF16, formats.FP16, formats.FP8_E8M0)


def claims(contents: Contents) -> bool:
    """Method `fp8` or `mxfp8`."""
    return contents.quant_method in METHODS


def weight(contents: Contents, array: StoredArray) -> Weight | None:
    """An array of FP8."""
    return _weight(contents, array) if is_fp8(array) else None


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


def _weight(contents: Contents, array: StoredArray) -> Weight:
    declared = contents.quantization or {}
    if contents.quant_method == "mxfp8":
        return mx_weight(
            contents, array, find(contents, array.name + INVERSE, array.name), array.name
        )
    if declared.get("weight_block_size") is None:
        scale = find(contents, array.name + DIRECT, array.name)
        return scaled_weight(contents, array, scale, array.name)
    block = block_size(contents, "weight_block_size")
    scale = find(contents, array.name + INVERSE, array.name)
    return block_weight(contents, array, scale, block, array.name)


def block_weight(
    contents: Contents, array: StoredArray, scale: StoredArray, block: Shape, name: str
) -> Weight:
    """A scale for every block of the last two axes."""
    why = f"blocks of {block[0]}x{block[1]} in {contents.declared_in}"
    fmt = formats.FP8_BLOCK.with_parameter(
        "scale", element=scale_element(scale, why), block=block
    ).with_element(fp8_element(array, why))
    _require_rank(array, len(block))
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
    _require_rank(array, 1)
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
    _require_rank(array, 1)
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


def _require_rank(array: StoredArray, rank: int) -> None:
    if len(array.shape) < rank:
        raise InputError(
            "quantised weight",
            file=array.file,
            tensor=array.name,
            expected=f"{rank} dimensions or more",
            found=list(array.shape),
        )
