"""Dialect `fp8`: DeepSeek-V3, Qwen3, transformers' FP8 quantisers and FBGEMM's.

    X.weight            F8_E4M3 (or E5M2) [..., N, K]
    X.weight_scale_inv  F32, BF16, F16 or F8_E8M0 [..., ceil(N / bn), ceil(K / bk)]; or
    X.weight_scale      or X.weight_scale_inv, F32 or BF16, one per tensor [] or [1], per row
                        [N, 1] or per column [1, K], where no block size is declared

A weight is its code times its scale, despite "inv"; either name goes with either kind. Block sizes
stand in `weight_block_size`, and are never worked out from shapes: the last block is cut off.
Method `mxfp8` has E8M0 scales in U8 for every 32 weights of a row. Stacked experts have `X` and
`X_scale_inv`. Experts that were made NVFP4 afterwards are as ModelOpt has them.
"""

from __future__ import annotations

from typing import Any

from jentropy.checkpoints.companions import is_scale_name
from jentropy.errors import InputError

from .scaled import (
    BLOCK,
    block_weight,
    is_fp8,
    is_nvfp4,
    mx_weight,
    nvfp4_weight,
    scaled_weight,
)
from .settings import block_pair
from .weight import Contents, StoredArray, Tensor, find

INVERSE, DIRECT = "_scale_inv", "_scale"


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """An array of FP8 that is no scale itself, or one of NVFP4."""
    if is_nvfp4(contents, array):
        return nvfp4_weight(contents, array)
    if not is_fp8(array) or is_scale_name(array.name.rpartition(".")[2]):
        return None
    scale, block = _scale(contents, array), _block(contents)
    if contents.quant_method == "mxfp8":
        return mx_weight(contents, array, scale, array.name)
    if block is None:
        return scaled_weight(contents, array, scale, array.name)
    return block_weight(contents, array, scale, block_pair(block, BLOCK, contents), array.name)


def _block(contents: Contents) -> Any:
    """What is declared of block sizes."""
    return (contents.quantization or {}).get(BLOCK)


def _scale(contents: Contents, array: StoredArray) -> StoredArray:
    """The scale under whichever of its names."""
    there = [n for n in (array.name + INVERSE, array.name + DIRECT) if n in contents.arrays]
    if len(there) > 1:
        raise InputError(
            "scales",
            file=array.file,
            tensor=array.name,
            expected=f"{INVERSE} or {DIRECT}",
            found="both",
        )
    usual = INVERSE if _block(contents) is not None or contents.quant_method == "mxfp8" else DIRECT
    return find(contents, there[0] if there else array.name + usual, array.name)
