"""Dialect `mistral`: Mistral's own FP8 (`consolidated.safetensors`, `params.json`).

    X.weight  F8_E4M3 [N, K]   X.qscale_weight  F32 [], multiplies   X.qscale_act  of activations

`params.json` has `quantization.qformat_weight` fp8_e4m3.
"""

from __future__ import annotations

from jentropy.errors import UnsupportedError

from .scaled import WEIGHT, is_fp8, scaled_weight
from .weight import Contents, StoredArray, Tensor, find

FORMAT, SCALE = "fp8_e4m3", ".qscale_weight"


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """A weight of FP8."""
    if not (is_fp8(array) and array.name.endswith(WEIGHT)):
        return None
    told = (contents.quantization or {}).get("qformat_weight")
    if told != FORMAT:
        raise UnsupportedError(
            f"qformat_weight of {contents.declared_in}",
            file=contents.source,
            tensor=array.name,
            expected=FORMAT,
            found=f"{told!r:.40}",
        )
    scale = find(contents, array.name.removesuffix(WEIGHT) + SCALE, array.name)
    return scaled_weight(contents, array, scale, array.name)
