"""Dialect `gpt-oss`: MXFP4 experts as OpenAI and transformers store them.

    X_blocks  U8 [E, R, C / 32, 16]  X_scales  U8 [E, R, C / 32]     transformers
    X.blocks  U8 [E, R, C / 32, 16]  X.scales  U8 [E, R, C / 32]     original

A byte holds two elements of a row, the even one in its low half. Transformers' weights are the
transpose, [E, C, R], as its BF16 checkpoints have them; the original's are [E, R, C].
"""

from __future__ import annotations

import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray

from .weight import Part, Weight, find, require_dtype, require_shape

NAME = "gpt-oss"
BLOCK = 32
BLOCKS, SCALES = "blocks", "scales"


def claims(contents: Contents) -> bool:
    """Method `mxfp4`, or arrays that can be nothing else."""
    return contents.quant_method == "mxfp4" or any(
        _is_blocks(array) for array in contents.arrays.values()
    )


def _is_blocks(array: StoredArray) -> bool:
    return (
        array.name.endswith(("_" + BLOCKS, "." + BLOCKS))
        and array.dtype == np.uint8
        and len(array.shape) >= 3
        and array.shape[-1] == BLOCK // 2
    )


def weight(contents: Contents, array: StoredArray) -> Weight | None:
    """An array of blocks."""
    return _weight(contents, array) if _is_blocks(array) else None


def _weight(contents: Contents, array: StoredArray) -> Weight:
    stem = array.name.removesuffix(BLOCKS)
    name, transposed = stem[:-1], stem.endswith("_")
    scale = find(contents, stem + SCALES, name)
    why = f"{array.name} {list(array.shape)}"
    require_dtype(scale, [np.uint8], why)
    require_shape(scale, [array.shape[:-1]], why)
    *stack, rows, groups, _ = array.shape
    columns = groups * BLOCK
    fmt = formats.MXFP4
    if transposed:
        fmt = fmt.with_parameter("scale", block=(BLOCK, 1))

    def turn(values: np.ndarray) -> np.ndarray:
        return np.swapaxes(values, -1, -2) if transposed else values

    def codes(values: np.ndarray) -> np.ndarray:
        return turn(formats.unpack(values, 4).reshape(*stack, rows, columns))

    return Weight(
        name=name,
        format=fmt,
        shape=(*stack, columns, rows) if transposed else (*stack, rows, columns),
        parts={
            "code": Part(array=array, element=formats.FP4_E2M1, unpack=codes),
            "scale": Part(array=scale, element=formats.FP8_E8M0, unpack=turn),
        },
    )
