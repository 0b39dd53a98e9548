"""Dialect `quark`: AMD Quark.

    fp4, per_group of 32, scale_format e8m0   X.weight U8 [N, K / 2], low half first
                                              X.weight_scale U8 [N, K / 32], E8M0
    fp8_e4m3, per_tensor or per_channel       X.weight F8_E4M3 [N, K]
                                              X.weight_scale F32 [], [N] or [N, 1]

`layer_quant_config` has patterns of modules with schemes of their own; `global_quant_config` is for
all others.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np

from jentropy.errors import UnsupportedError

from .scaled import WEIGHT, is_fp8, mxfp4_weight, scaled_weight
from .settings import Declared, mapping
from .weight import Contents, StoredArray, Tensor, find, require_shape


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """An array of FP8 or U8 that is a weight."""
    if not array.name.endswith(WEIGHT) or not (is_fp8(array) or array.dtype == np.uint8):
        return None
    scheme = _scheme(contents, array.name.removesuffix(WEIGHT))
    kind, cut = scheme.get("dtype"), scheme.get("qscheme")
    scale = find(contents, f"{array.name}_scale", array.name)
    if kind == "fp8_e4m3" and cut in ("per_tensor", "per_channel"):
        built = scaled_weight(contents, array, scale, array.name)
        is_single = built.number_format.parameters[0].block is None
        rows = [array.shape[:-1], (*array.shape[:-1], 1)]
        if is_single != (cut == "per_tensor"):
            why = f"qscheme {cut} in {contents.declared_in}"
            require_shape(scale, [()] if cut == "per_tensor" else rows, why)
        return built
    groups = scheme.get("group_size"), scheme.get("scale_format")
    if kind == "fp4" and cut == "per_group" and groups == (32, "e8m0"):
        return mxfp4_weight(array, scale, f"fp4 in {contents.declared_in}")
    raise UnsupportedError(
        f"weights of {contents.declared_in}",
        file=contents.source,
        tensor=array.name,
        expected="fp4 per_group 32 with e8m0, or fp8_e4m3 per_tensor or per_channel",
        found=f"{kind!r:.20} {cut!r:.20} {groups[0]!r:.20} {groups[1]!r:.20}",
    )


def _scheme(contents: Contents, module: str) -> Declared:
    """What is declared of a module's weights."""
    declared = mapping(contents.quantization)
    layers = mapping(declared.get("layer_quant_config"))
    pattern = next((k for k in layers if k == module or fnmatchcase(module, k)), None)
    if pattern is None and declared.get("layer_type_quant_config"):
        raise UnsupportedError(  # classes of modules are not in a checkpoint
            f"layer_type_quant_config of {contents.declared_in}",
            file=contents.source,
            expected="none",
            found="some",
        )
    settings = declared.get("global_quant_config") if pattern is None else layers[pattern]
    return mapping(mapping(settings).get("weight"))
