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

import numpy as np

from jentropy import formats
from jentropy.errors import UnsupportedError

from .scaled import (
    WEIGHT,
    base_scale,
    base_weight,
    block_weight,
    fp4_weight,
    is_fp8,
    linear_weight,
    mx_weight,
    scaled_weight,
)
from .settings import Declared, integer, mapping
from .weight import (
    Contents,
    Packed,
    Stored,
    StoredArray,
    Tensor,
    find,
    require_dtype,
    require_rank,
)

FP8_BLOCK = (128, 128)
FP8_BLOCKS = ("FP8_PB_WO", "FP8_BLOCK_SCALES")
FP4 = ("MXFP4", "NVFP4", "W4A16_NVFP4", "NVFP4_AWQ", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8")
MX = ("MXFP4", "W4A8_MXFP4_FP8")


def claims(contents: Contents) -> bool:
    """Method `modelopt`, or one that begins so."""
    return (contents.quant_method or "").startswith("modelopt")


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """An array of FP8 or U8 that has scales."""
    stem = array.name if array.name.endswith(WEIGHT) else f"{array.name}_weight"
    is_code = is_fp8(array) or array.dtype == np.uint8
    has_scale = f"{stem}_scale" in contents.arrays
    if not has_scale and (scale := base_scale(contents, array)) is not None:
        return base_weight(contents, array, scale)
    if not is_code or not (has_scale or array.name.endswith(WEIGHT)):
        return None
    return _weight(contents, array, stem)


def _declared(contents: Contents, module: str) -> Declared:
    """What is declared of a module: for itself, for a module above it, or for all."""
    declared = mapping(contents.quantization)
    layers = mapping(declared.get("quantized_layers"))
    while layers and module:
        if isinstance(settings := layers.get(module), Mapping):
            return {**declared, "group_size": None, **settings}
        module = module.rpartition(".")[0]
    groups = mapping(declared.get("config_groups")).values()
    sizes = [mapping(mapping(group).get("weights")).get("group_size") for group in groups]
    told = [declared.get("group_size"), *sizes]
    return {**declared, "group_size": next((size for size in told if size is not None), None)}


def _weight(contents: Contents, array: StoredArray, stem: str) -> Tensor:
    name = array.name
    scale = find(contents, f"{stem}_scale", name)
    declared = _declared(contents, name.removesuffix(WEIGHT))
    algorithm = str(declared.get("quant_algo")).upper()
    why = f"quant_algo {algorithm} in {contents.declared_in}"
    if algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        return scaled_weight(contents, array, scale, name)
    if algorithm in FP8_BLOCKS:
        return block_weight(contents, array, scale, FP8_BLOCK, name)
    if algorithm == "MXFP8":
        return mx_weight(contents, array, scale, name)
    if algorithm in FP4:
        is_mx, is_stack = algorithm in MX, not name.endswith(WEIGHT)
        size = 32 if is_mx else integer(declared, "group_size", contents, 16)
        level = None if is_mx else find(contents, f"{stem}_scale_2", name)
        number_format = (formats.MXFP4 if is_mx else formats.NVFP4).with_parameter(
            "scale", block=(size, 1) if is_stack else (size,)
        )
        why = f"{why} with groups of {size}"
        require_rank(array, 2)
        axis = -2 if is_stack else -1
        return fp4_weight(name, number_format, array, scale, level, why, axis=axis)
    if algorithm == "W4A16_AWQ":
        size = integer(declared, "group_size", contents, 128)
        require_dtype(array, [np.uint8], why)
        require_rank(array, 2)
        *stack, rows, columns = array.shape
        require_dtype(scale, [np.float32], why)
        stored: dict[str, Stored] = {"code": (array, Packed(axis=-2)), "scale": scale}
        why = f"{why} with groups of {size}"
        shape = (*stack, 2 * rows, columns)
        return linear_weight(name, formats.INT4, shape, stored, (size,), why)
    raise UnsupportedError(
        f"quant_algo of {contents.declared_in}",
        file=contents.source,
        tensor=name,
        expected=" or ".join(("FP8", *FP8_BLOCKS, "MXFP8", *FP4, "W4A16_AWQ")),
        found=repr(algorithm),
    )
