"""Dialect `mlx`: Apple's MLX, affine groups.

    X.weight  U32 [N, K b / 32]   codes of b bits without gaps, low bits first
    X.scales, X.biases  F16, BF16 or F32 [N, K / g]

The weight is code * scale + bias. `quantization` of config.json has `bits` and `group_size`, and an
object under the name of a module that has its own.
"""

from __future__ import annotations

import numpy as np

from jentropy import formats
from jentropy.errors import UnsupportedError

from .scaled import WEIGHT, scale_element
from .settings import integer, mapping
from .weight import (
    Contents,
    Packed,
    Stored,
    StoredArray,
    Tensor,
    Whole,
    assemble,
    find,
    require_rank,
)

WORD_BITS = 32
BITS = (2, 3, 4, 5, 6, 8)
AFFINE = "affine"


def claims(contents: Contents) -> bool:
    """Bits and a group size without a method, as MLX declares them."""
    declared = contents.quantization or {}
    return (
        declared.get("quant_method") is None
        and {"bits", "group_size"} <= declared.keys()
        and ("quantization" in (contents.config or {}) or contents.metadata.get("format") == "mlx")
    )


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """An array of words that has scales."""
    module = array.name.removesuffix(WEIGHT)
    if not array.name.endswith(WEIGHT) or array.dtype != np.uint32:
        return None
    declared = mapping(contents.quantization)
    declared = {**declared, **mapping(declared.get(module))}
    bits, size = integer(declared, "bits", contents), integer(declared, "group_size", contents)
    mode = declared.get("mode", AFFINE)
    if mode != AFFINE or bits not in BITS:
        raise UnsupportedError(
            f"MLX of {contents.declared_in}",
            file=contents.source,
            tensor=array.name,
            expected=f"mode {AFFINE}, {', '.join(map(str, BITS))} bits",
            found=f"mode {mode!r:.20}, {bits} bits",
        )
    return _weight(contents, array, module, bits, size)


def _element(bits: int) -> formats.ElementFormat:
    known = {4: formats.UINT4, 6: formats.UINT6, 8: formats.UINT8}
    fields = (formats.Field(name="code", bits=bits),)
    return known.get(bits) or formats.ElementFormat(
        name=f"UINT{bits}", dtype=np.dtype(np.uint8), fields=fields
    )


def _weight(contents: Contents, array: StoredArray, module: str, bits: int, size: int) -> Tensor:
    require_rank(array, 2)
    scales, biases = (find(contents, f"{module}.{key}", array.name) for key in ("scales", "biases"))
    shape = (*array.shape[:-1], array.shape[-1] * WORD_BITS // bits)
    why = f"{bits} bits, groups of {size} in {contents.declared_in}"
    element = scale_element(scales, why)
    parameters = (
        formats.blocks.scale(element, (size,)),
        # An offset is subtracted: what is added has its sign flipped.
        formats.Parameter(
            name="min",
            field="zero_point",
            element=element,
            block=(size,),
            role=formats.Role.OFFSET,
        ),
    )
    number_format = formats.Format(name=f"INT{bits}", element=_element(bits), parameters=parameters)
    stored: dict[str, Stored] = {
        "code": (array, Packed()),
        "scale": scales,
        "min": (biases, Whole(flip=1 << element.code_bits - 1)),
    }
    return assemble(array.name, number_format, shape, stored, why)
