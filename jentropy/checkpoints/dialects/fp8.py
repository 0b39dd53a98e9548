"""Dialect `fp8`: DeepSeek-V3, Qwen3 and transformers' FP8 quantiser.

    X.weight            F8_E4M3 (or E5M2) [..., N, K]
    X.weight_scale_inv  F32, BF16, F16 or F8_E8M0 [..., ceil(N / bn), ceil(K / bk)]; or
    X.weight_scale      or X.weight_scale_inv, F32 or BF16, one per tensor [] or [1], or per row
                        [N, 1], where no block size is declared

A weight is its code times its scale, despite "inv". Block sizes stand in `weight_block_size`, and
are never worked out from shapes: the last block is cut off. Method `mxfp8` has E8M0 scales in U8
for every 32 weights of a row. Stacked experts have `X` and `X_scale_inv`.
"""

from __future__ import annotations

from jentropy.checkpoints.contents import Contents, StoredArray

from .scaled import block_weight, is_fp8, mx_weight, scaled_weight
from .weight import Weight, block_size, find

NAME = "fp8"
METHODS = ("fp8", "mxfp8")
INVERSE, DIRECT = "_scale_inv", "_scale"


def claims(contents: Contents) -> bool:
    """Method `fp8` or `mxfp8`."""
    return contents.quant_method in METHODS


def weight(contents: Contents, array: StoredArray) -> Weight | None:
    """An array of FP8."""
    return _weight(contents, array) if is_fp8(array) else None


def _weight(contents: Contents, array: StoredArray) -> Weight:
    name = array.name
    if contents.quant_method == "mxfp8":
        return mx_weight(contents, array, find(contents, name + INVERSE, name), name)
    if (contents.quantization or {}).get("weight_block_size") is None:
        is_inverse = name + INVERSE in contents.arrays
        scale = find(contents, name + (INVERSE if is_inverse else DIRECT), name)
        return scaled_weight(contents, array, scale, name)
    block = block_size(contents, "weight_block_size")
    return block_weight(contents, array, find(contents, name + INVERSE, name), block, name)
