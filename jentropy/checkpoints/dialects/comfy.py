"""Dialect `comfy`: ComfyUI's scaled FP8, in single files without a config.

    X.weight  F8_E4M3 or F8_E5M2 [N, K]
    X.scale_weight  F32 [] or [1], multiplies; X.scale_input; a marker `scaled_fp8`       older
    X.weight_scale  the same, and what says so: X.comfy_quant U8, JSON, or the metadata's
                    `_quantization_metadata` {"layers": {X: {"format": "float8_e4m3fn"}}}   newer

Other formats of theirs, and layers that they rotate, are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jentropy.errors import UnsupportedError

from .scaled import WEIGHT, is_fp8, scaled_weight
from .settings import Declared, mapping
from .weight import Contents, StoredArray, Tensor, find, read_json

MARKER, OLD_SCALE, TOLD, METADATA = (
    "scaled_fp8",
    ".scale_weight",
    ".comfy_quant",
    "_quantization_metadata",
)
PREFIX = "model.diffusion_model."  # of weights, which names in the metadata may lack
FORMATS = ("float8_e4m3fn", "float8_e5m2")
HARMLESS = {"format", "full_precision_matrix_mult"}


def claims(contents: Contents) -> bool:
    """No config, and one of the three signs."""
    return contents.quantization is None and (
        METADATA in contents.metadata
        or any(name.endswith((OLD_SCALE, TOLD, MARKER)) for name in contents.arrays)
    )


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """A weight of FP8, or one that is said to be quantised."""
    if not array.name.endswith(WEIGHT):
        return None
    layer = array.name.removesuffix(WEIGHT)
    if (told := _told(contents, layer)) is not None:
        _check(array, told)
        scale = find(contents, f"{array.name}_scale", array.name)
    elif is_fp8(array) and _is_old(contents):
        scale = find(contents, layer + OLD_SCALE, array.name)
    else:
        return None
    return scaled_weight(contents, array, scale, array.name)


def _told(contents: Contents, layer: str) -> Any:
    """What is said of a layer's quantisation."""
    if (told := contents.arrays.get(layer + TOLD)) is not None:
        return read_json(told.file, told.read().tobytes())
    layers = _layers(contents)
    return layers.get(layer, layers.get(layer.removeprefix(PREFIX)))


@lru_cache(maxsize=8)
def _is_old(contents: Contents) -> bool:
    return any(name.endswith((OLD_SCALE, MARKER)) for name in contents.arrays)


@lru_cache(maxsize=8)  # read once for all tensors of a checkpoint
def _layers(contents: Contents) -> Declared:
    content = read_json(contents.source, contents.metadata.get(METADATA, "null"))
    return mapping(mapping(content).get("layers"))


def _check(array: StoredArray, told: Any) -> None:
    told = told if isinstance(told, Mapping) else {"format": told}
    unknown = sorted(key for key, value in told.items() if key not in HARMLESS and value)
    if told.get("format") not in FORMATS or unknown:
        raise UnsupportedError(
            "what ComfyUI says of the layer",
            file=array.file,
            tensor=array.name,
            expected=f"format {' or '.join(FORMATS)}, and nothing else",
            found=f"format {told.get('format')!r:.40}"
            + (f" with {', '.join(unknown)}" if unknown else ""),
        )
