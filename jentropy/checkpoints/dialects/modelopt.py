"""Dialect `modelopt`: NVIDIA ModelOpt's exports (config.json or hf_quant_config.json).

    FP8           weight F8_E4M3 [N, K]; weight_scale F32 [] (or [N], one per row)
    FP8_PB_WO     weight_scale F32 [ceil(N / 128), 1, ceil(K / 128), 1], or [] for a single block;
                  FP8_BLOCK_SCALES: weight_scale_inv [ceil(N / 128), ceil(K / 128)]
    MXFP8         weight_scale U8 [N, K / 32], E8M0
    MXFP4         weight U8 [N, K / 2], low half first; weight_scale U8 [N, K / 32], E8M0
    NVFP4         weight U8 [N, K / 2]; weight_scale F8_E4M3 [N, K / g]; weight_scale_2 F32 []
    W4A16_AWQ     weight U8 [N / 2, K], rows 2i and 2i + 1 in the halves, two's complement;
                  weight_scale F32 [N, K / g]

Stacked experts of NVFP4 are X U8 [E, H / 2, I], packed along H, X_weight_scale [E, H / g, I] and
X_weight_scale_2. AWQ's `pre_quant_scale` multiplies the layer's input and is a tensor of its own.
Algorithm MIXED_PRECISION names the algorithm of each module in `quantized_layers`. Excluded modules
may still be in the base model's FP8 (`scaled`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.errors import UnsupportedError
from jentropy.formats import blocks

from .scaled import (
    base_scale,
    base_weight,
    fp8_element,
    is_fp8,
    mx_weight,
    scale_element,
    scaled_weight,
)
from .weight import (
    Shape,
    Weight,
    find,
    integer,
    packed,
    require_dtype,
    require_rank,
    require_shape,
    whole,
)

NAME = "modelopt"
WEIGHT = ".weight"
FP8_BLOCK = (128, 128)
FP8_BLOCKS = ("FP8_PB_WO", "FP8_BLOCK_SCALES")
FP4 = ("MXFP4", "NVFP4", "W4A16_NVFP4", "NVFP4_AWQ", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8")
MX = ("MXFP4", "W4A8_MXFP4_FP8")


def claims(contents: Contents) -> bool:
    """Method `modelopt`."""
    return contents.quant_method is not None and contents.quant_method.startswith(NAME)


def weight(contents: Contents, array: StoredArray) -> Weight | None:
    """An array of FP8 or U8 that has scales."""
    stem = array.name if array.name.endswith(WEIGHT) else f"{array.name}_weight"
    is_code = is_fp8(array) or array.dtype == np.uint8
    has_scale = f"{stem}_scale" in contents.arrays
    if not has_scale and (scale := base_scale(contents, array)) is not None:
        return base_weight(contents, array, scale)
    if not is_code or not (has_scale or array.name.endswith(WEIGHT)):
        return None
    return _weight(contents, array, stem)


def _declared(contents: Contents, module: str) -> Mapping[str, Any]:
    """What is declared of a module: for itself, for a module above it, or for all."""
    declared = contents.quantization or {}
    layers = declared.get("quantized_layers")
    while isinstance(layers, Mapping) and module:
        if isinstance(own := layers.get(module), Mapping):
            return {**declared, "group_size": None, **own}
        module = module.rpartition(".")[0]
    if declared.get("group_size") is None:
        groups = declared.get("config_groups")
        for group in groups.values() if isinstance(groups, Mapping) else ():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping) and weights.get("group_size") is not None:
                return {**declared, "group_size": weights["group_size"]}
    return declared


def _weight(contents: Contents, array: StoredArray, stem: str) -> Weight:
    scale = find(contents, f"{stem}_scale", array.name)
    declared = _declared(contents, array.name.removesuffix(WEIGHT))
    algorithm = str(declared.get("quant_algo")).upper()
    why = f"quant_algo {algorithm} in {contents.declared_in}"
    if algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        return scaled_weight(contents, array, scale, array.name)
    if algorithm in FP8_BLOCKS:
        return _fp8_block(contents, array, scale, why)
    if algorithm == "MXFP8":
        return mx_weight(contents, array, scale, array.name)
    if algorithm in FP4:
        return _fp4(contents, array, stem, scale, declared, why)
    if algorithm == "W4A16_AWQ":
        return _int4(contents, array, scale, declared, why)
    raise UnsupportedError(
        f"quant_algo of {contents.declared_in}",
        file=contents.source,
        tensor=array.name,
        expected=" or ".join(("FP8", *FP8_BLOCKS, "MXFP8", *FP4, "W4A16_AWQ")),
        found=repr(algorithm),
    )


def _fp8_block(contents: Contents, array: StoredArray, scale: StoredArray, why: str) -> Weight:
    require_rank(array, 2)
    element, shape = fp8_element(array, why), array.shape
    fmt = formats.FP8_BLOCK.with_element(element).with_parameter("scale", block=FP8_BLOCK)
    grid = fmt.parameter("scale").grid(shape)
    spaced = (*grid[:-2], grid[-2], 1, grid[-1], 1)
    single: list[Shape] = [()] if set(grid) == {1} else []
    why = f"{why}, weight {list(shape)}"
    fmt = fmt.with_parameter("scale", element=scale_element(scale, why))
    require_shape(scale, [spaced, grid, *single], why)
    parts = {
        "code": whole(array, element, shape),
        "scale": whole(scale, fmt.parameter("scale").element, grid),
    }
    return Weight(name=array.name, format=fmt, shape=shape, parts=parts)


def _fp4(
    contents: Contents,
    array: StoredArray,
    stem: str,
    scale: StoredArray,
    declared: Mapping[str, Any],
    why: str,
) -> Weight:
    require_dtype(array, [np.uint8], why)
    is_stacked = not array.name.endswith(WEIGHT)
    require_rank(array, 2)
    is_mx = str(declared.get("quant_algo")).upper() in MX
    fmt = formats.MXFP4 if is_mx else formats.NVFP4
    size = 32 if is_mx else integer(declared, "group_size", contents, 16)
    axis = -2 if is_stacked else -1
    shape = list(array.shape)
    shape[axis] *= 2
    fmt = fmt.with_parameter("scale", block=(size, 1) if is_stacked else (size,))
    parameter = fmt.parameter("scale")
    grid = parameter.grid(tuple(shape))
    why = f"{why} with groups of {size}, weight {shape}"
    require_dtype(scale, [np.uint8 if is_mx else ml_dtypes.float8_e4m3fn], why)
    require_shape(scale, [grid], why)
    parts = {
        "code": packed(array, formats.FP4_E2M1, axis=axis),
        "scale": whole(scale, parameter.element, grid),
    }
    if not is_mx:
        level = find(contents, f"{stem}_scale_2", array.name)
        require_dtype(level, [np.float32], why)
        single = (1,) * len(shape)
        experts = (shape[0], *single[1:]) if len(shape) > 2 else single
        require_shape(level, [(), (1,), experts, experts[:1]], why)
        per_expert = level.shape in (experts, experts[:1]) and experts != single
        block = (0,) * (len(shape) - 1) if per_expert else None
        fmt = fmt.with_parameter("tensor_scale", block=block)
        parts["tensor_scale"] = whole(level, formats.FP32, experts if per_expert else single)
    return Weight(name=array.name, format=fmt, shape=tuple(shape), parts=parts)


def _int4(
    contents: Contents,
    array: StoredArray,
    scale: StoredArray,
    declared: Mapping[str, Any],
    why: str,
) -> Weight:
    require_dtype(array, [np.uint8], why)
    require_rank(array, 2)
    size = integer(declared, "group_size", contents, 128)
    shape = (*array.shape[:-2], 2 * array.shape[-2], array.shape[-1])
    parameter = blocks.scale(formats.FP32, (size,))
    grid = parameter.grid(shape)
    why = f"{why} with groups of {size}, weight {list(shape)}"
    require_dtype(scale, [np.float32], why)
    require_shape(scale, [grid], why)
    return Weight(
        name=array.name,
        format=formats.Format(name="INT4", element=formats.INT4, parameters=(parameter,)),
        shape=shape,
        parts={
            "code": packed(array, formats.INT4, axis=-2),
            "scale": whole(scale, formats.FP32, grid),
        },
    )
