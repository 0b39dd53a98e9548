"""Dialect `deepseek-v4`: FP8 blocks and MXFP4 experts, both with E8M0 scales named `.scale`.

X.weight  F8_E4M3 [N, K]     X.scale  F8_E8M0 [ceil(N / 128), ceil(K / 128)]
X.weight  I8 [N, K / 2]      X.scale  F8_E8M0 [N, K / 32], if `expert_dtype` is fp4

Experts that were made NVFP4 afterwards are as ModelOpt has them.
"""

from __future__ import annotations

import numpy as np

from jentropy.checkpoints.companions import is_scale_name
from jentropy.errors import InputError

from .scaled import BASE_BLOCK, BLOCK, block_weight, is_fp8, is_nvfp4, mxfp4_weight, nvfp4_weight
from .settings import block_pair, mapping
from .weight import Contents, StoredArray, Tensor, find

WEIGHT, SCALE = ".weight", ".scale"


def claims(contents: Contents) -> bool:
    """Method `fp8` with scales named `.scale`."""
    return contents.quant_method == "fp8" and any(
        name.endswith(SCALE) and name.removesuffix(SCALE) + WEIGHT in contents.arrays
        for name in contents.arrays
    )


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """An array of FP8 that is no scale itself, or of I8 with a scale, or of NVFP4."""
    if is_nvfp4(contents, array):
        return nvfp4_weight(contents, array)
    scale = array.name.removesuffix(WEIGHT) + SCALE
    if is_fp8(array) and not is_scale_name(array.name.rpartition(".")[2]):
        declared = mapping(contents.quantization).get(BLOCK, BASE_BLOCK)
        block = block_pair(declared, BLOCK, contents)
        return block_weight(contents, array, find(contents, scale, array.name), block, array.name)
    if array.dtype == np.int8 and scale in contents.arrays:
        return _expert(contents, array, contents.arrays[scale])
    return None


def _expert(contents: Contents, array: StoredArray, scale: StoredArray) -> Tensor:
    declared = (contents.config or {}).get("expert_dtype")
    if declared != "fp4":
        raise InputError(
            "I8 weight with scales",
            file=array.file,
            tensor=array.name,
            expected="expert_dtype fp4 in config.json",
            found=f"{declared!r:.40}",
        )
    return mxfp4_weight(array, scale, "expert_dtype fp4 in config.json")
