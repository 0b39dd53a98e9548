"""Dialect `gpt-oss`: MXFP4 experts as OpenAI and transformers store them.

    X_blocks  U8 [E, R, C / 32, 16]  X_scales  U8 [E, R, C / 32]     transformers
    X.blocks  U8 [E, R, C / 32, 16]  X.scales  U8 [E, R, C / 32]     original

A byte holds two elements of a row, the even one in its low half. Transformers' weights are the
transpose, [E, C, R], as its BF16 checkpoints have them; the original's are [E, R, C].
"""

from __future__ import annotations

import numpy as np

from jentropy import formats

from .weight import Contents, Packed, Stored, StoredArray, Tensor, Whole, assemble, find

BLOCK = 32
BLOCKS, SCALES = "blocks", "scales"


def claims(contents: Contents) -> bool:
    """Arrays that can be nothing else."""
    return any(map(_is_blocks, contents.arrays.values()))


def _is_blocks(array: StoredArray) -> bool:
    return (
        array.name.endswith(("_" + BLOCKS, "." + BLOCKS))
        and array.dtype == np.uint8
        and len(array.shape) >= 3
        and array.shape[-1] == BLOCK // 2
    )


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """An array of blocks."""
    if not _is_blocks(array):
        return None
    stem = array.name.removesuffix(BLOCKS)
    name, is_transposed = stem[:-1], stem.endswith("_")
    scale = find(contents, stem + SCALES, name)
    *stack, rows, groups, _ = array.shape
    axes = (groups * BLOCK, rows) if is_transposed else (rows, groups * BLOCK)
    number_format = formats.MXFP4.with_parameter(
        "scale", block=(BLOCK, 1) if is_transposed else (BLOCK,)
    )
    stored: dict[str, Stored] = {
        "code": (array, Packed(transposed=is_transposed)),
        "scale": (scale, Whole(transposed=is_transposed)),
    }
    why = f"{array.name} {list(array.shape)}"
    return assemble(name, number_format, (*stack, *axes), stored, why)
