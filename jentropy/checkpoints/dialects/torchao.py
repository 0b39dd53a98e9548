"""Dialect `torchao`: tensor subclasses, named in the safetensors metadata.

    __metadata__["X.weight"] = JSON {"_type", "_data": {...}, "_tensor_data_names": [...]}
    X._weight_qdata, X._weight_scale, X._weight_zero_point, X._weight_per_tensor_scale

    Float8Tensor            qdata F8_E4M3 or F8_E5M2; scale F32 by `block_size`
    Int8Tensor, IntxUnpackedToInt8Tensor   qdata I8; scale and zero point by `block_size`
    NVFP4Tensor             qdata U8 [N, K / 2], low half first; scale F8_E4M3, per tensor F32 []

NVFP4's scales may be swizzled for the tensor core: padded to 128 rows and 4 columns, tiles of
[128, 4] one after another, the rows of a tile in the order 0, 32, 64, 96, 1, 33, ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray, read_json
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import blocks

from .scaled import fp8_element, scale_element
from .weight import (
    LARGEST,
    Part,
    Shape,
    Weight,
    find,
    packed,
    require_dtype,
    require_rank,
    require_shape,
    whole,
)

NAME = "torchao"
TILE_ROWS, TILE_COLUMNS, TILE_STRIDE = 128, 4, 32
QDATA = "_qdata"


def claims(contents: Contents) -> bool:
    """Method `torchao`, or metadata that names tensor subclasses."""
    return contents.quant_method == NAME or any(
        '"_tensor_data_names"' in text for text in contents.metadata.values()
    )


def weight(contents: Contents, array: StoredArray) -> Weight | None:
    """The `qdata` of a parameter that is a tensor subclass."""
    if not array.name.endswith(QDATA):
        return None
    stem = array.name.removesuffix(QDATA) + "_"
    module, dot, parameter = array.name.removesuffix(QDATA).rpartition(".")
    name = module + dot + parameter.removeprefix("_")
    told = read_json(array.file, contents.metadata.get(name, "null"))
    data = told.get("_data") if isinstance(told, Mapping) else None
    if not isinstance(data, Mapping):
        raise InputError(
            "__metadata__",
            file=array.file,
            tensor=name,
            expected="its tensor subclass with _data",
            found=f"{told!r:.60}",
        )
    for part in told.get("_tensor_data_names") or ():
        find(contents, f"{stem}{part}", name)
    match told.get("_type"):
        case "Float8Tensor":
            return _float8(contents, name, stem, array, data)
        case "Int8Tensor" | "IntxUnpackedToInt8Tensor":
            return _int8(contents, name, stem, array, data)
        case "NVFP4Tensor":
            return _nvfp4(contents, name, stem, array, data)
        case kind:
            raise UnsupportedError(
                "tensor subclass",
                file=array.file,
                tensor=name,
                expected="Float8Tensor, Int8Tensor, IntxUnpackedToInt8Tensor or NVFP4Tensor",
                found=f"{kind!r:.60}",
            )


def _block(array: StoredArray, name: str, data: Mapping[str, Any]) -> Shape:
    block = data.get("block_size")
    if (
        not isinstance(block, list)
        or len(block) != len(array.shape)
        or not all(isinstance(n, int) and 0 < n < LARGEST for n in block)
    ):
        raise InputError(
            "block_size in __metadata__",
            file=array.file,
            tensor=name,
            expected=f"one size for each axis of {list(array.shape)}",
            found=f"{block!r:.60}",
        )
    return tuple(block)


def _float8(
    contents: Contents, name: str, stem: str, code: StoredArray, data: Mapping[str, Any]
) -> Weight:
    block = _block(code, name, data)
    why = f"block_size {list(block)} in __metadata__, weight {list(code.shape)}"
    element = fp8_element(code, why)
    scale = find(contents, f"{stem}scale", name)
    parameter = blocks.scale(scale_element(scale, why), block)
    grid = parameter.grid(code.shape)
    require_shape(scale, [grid], why)
    is_block = sum(1 < n < size for n, size in zip(block, code.shape, strict=True)) > 0
    return Weight(
        name=name,
        format=formats.Format(
            name="FP8_BLOCK" if is_block else element.name,
            element=element,
            parameters=(parameter,),
        ),
        shape=code.shape,
        parts={
            "code": whole(code, element, code.shape),
            "scale": whole(scale, parameter.element, grid),
        },
    )


def _int8(
    contents: Contents, name: str, stem: str, code: StoredArray, data: Mapping[str, Any]
) -> Weight:
    block = _block(code, name, data)
    why = f"block_size {list(block)} in __metadata__, weight {list(code.shape)}"
    require_dtype(code, [np.int8], why)
    scale = find(contents, f"{stem}scale", name)
    parameter = blocks.scale(scale_element(scale, why), block)
    grid = parameter.grid(code.shape)
    flat = tuple(n for n in grid if n > 1)
    require_shape(scale, [grid, grid[:-1], flat], why)
    parameters = [parameter]
    parts = {
        "code": whole(code, formats.INT8, code.shape),
        "scale": whole(scale, parameter.element, grid),
    }
    if (zero := contents.arrays.get(f"{stem}zero_point")) is not None:
        require_dtype(zero, [np.int8], why)
        require_shape(zero, [grid, grid[:-1], flat], why)
        parameters.append(blocks.zero_point(formats.INT8, block))
        parts["zero_point"] = whole(zero, formats.INT8, grid)
    # 4-bit numbers may lie in these bytes, too: the format is that of what is stored.
    fmt = formats.Format(name="INT8", element=formats.INT8, parameters=tuple(parameters))
    return Weight(name=name, format=fmt, shape=code.shape, parts=parts)


def _nvfp4(
    contents: Contents, name: str, stem: str, code: StoredArray, data: Mapping[str, Any]
) -> Weight:
    size = data.get("block_size", 16)
    why = f"block_size {size!r:.20} in __metadata__, stored {list(code.shape)}"
    require_dtype(code, [np.uint8], why)
    if (
        not isinstance(size, int)
        or isinstance(size, bool)
        or not 0 < size < LARGEST
        or not code.shape
    ):
        raise InputError(
            "NVFP4Tensor", file=code.file, tensor=name, expected="axes and a block_size", found=why
        )
    shape = (*code.shape[:-1], 2 * code.shape[-1])
    fmt = formats.NVFP4.with_parameter("scale", block=(size,))
    grid = fmt.parameter("scale").grid(shape)
    scale = find(contents, f"{stem}scale", name)
    require_dtype(scale, [ml_dtypes.float8_e4m3fn], why)
    if data.get("is_swizzled_scales"):
        require_rank(code, 2)
        require_shape(scale, [_swizzled(grid)], f"{why}, swizzled")
        scale_part = Part(
            array=scale,
            element=formats.FP8_E4M3,
            unpack=lambda values: _unswizzle(formats.codes_of(values), grid),
        )
    else:
        require_shape(scale, [grid], why)
        scale_part = whole(scale, formats.FP8_E4M3, grid)
    parts = {"code": packed(code, formats.FP4_E2M1), "scale": scale_part}
    level = contents.arrays.get(f"{stem}per_tensor_scale")
    if level is None:
        fmt = formats.Format(
            name=fmt.name, element=fmt.element, parameters=(fmt.parameter("scale"),)
        )
    else:
        require_dtype(level, [np.float32], why)
        require_shape(level, [(), (1,)], why)
        parts["tensor_scale"] = whole(level, formats.FP32, (1,) * len(shape))
    return Weight(name=name, format=fmt, shape=shape, parts=parts)


def _tiles(grid: Shape) -> tuple[int, int]:
    return -(-grid[-2] // TILE_ROWS), -(-grid[-1] // TILE_COLUMNS)


def _swizzled(grid: Shape) -> Shape:
    """Shape that scales of a grid are stored in."""
    down, across = _tiles(grid)
    return (*grid[:-2], down * TILE_STRIDE, across * TILE_COLUMNS * TILE_ROWS // TILE_STRIDE)


def _unswizzle(codes: np.ndarray, grid: Shape) -> np.ndarray:
    """Codes [*grid] of swizzled ones."""
    down, across = _tiles(grid)
    stack = grid[:-2]
    inner = TILE_ROWS // TILE_STRIDE
    tiles = codes.reshape(math.prod(stack), down, across, TILE_STRIDE, inner, TILE_COLUMNS)
    # Axes: tile row, group of 32 rows, row of the group, tile column, column.
    rows = tiles.transpose(0, 1, 4, 3, 2, 5)
    flat = rows.reshape(*stack, down * TILE_ROWS, across * TILE_COLUMNS)
    return np.ascontiguousarray(flat[..., : grid[-2], : grid[-1]])
