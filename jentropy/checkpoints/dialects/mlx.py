"""Dialect `mlx`: Apple's MLX, affine groups.

    X.weight  U32 [N, K b / 32]   codes of b bits without gaps, low bits first
    X.scales, X.biases  F16, BF16 or F32 [N, K / g]

The weight is code * scale + bias. `quantization` of config.json has `bits` and `group_size`, and an
object under the name of a module that has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.errors import UnsupportedError
from jentropy.formats import ElementFormat, Field, Parameter, Role, blocks

from .scaled import WEIGHT, scale_element
from .weight import Part, Weight, find, integer, require_dtype, require_rank, require_shape

NAME = "mlx"
WORD_BITS = 32
BITS = (2, 3, 4, 5, 6, 8)
AFFINE = "affine"


def claims(contents: Contents) -> bool:
    """Bits and a group size without a method, as MLX declares them."""
    declared = contents.quantization or {}
    return (
        declared.get("quant_method") is None
        and {"bits", "group_size"} <= declared.keys()
        and ("quantization" in (contents.config or {}) or contents.metadata.get("format") == NAME)
    )


def weight(contents: Contents, array: StoredArray) -> Weight | None:
    """An array of words that has scales."""
    module = array.name.removesuffix(WEIGHT)
    if not array.name.endswith(WEIGHT) or array.dtype != np.uint32:
        return None
    declared: Mapping[str, Any] = contents.quantization or {}
    own = declared.get(module)
    if isinstance(own, Mapping):
        declared = {**declared, **own}
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


def _element(bits: int) -> ElementFormat:
    known = {4: formats.UINT4, 6: formats.UINT6, 8: formats.UINT8}
    fields = (Field(name="code", bits=bits),)
    return known.get(bits) or ElementFormat(
        name=f"UINT{bits}", dtype=np.dtype(np.uint8), fields=fields
    )


def _weight(contents: Contents, array: StoredArray, module: str, bits: int, size: int) -> Weight:
    require_rank(array, 2)
    scales, biases = (find(contents, f"{module}.{key}", array.name) for key in ("scales", "biases"))
    shape = (*array.shape[:-1], array.shape[-1] * WORD_BITS // bits)
    why = f"{bits} bits, groups of {size} in {contents.declared_in}, weight {list(shape)}"
    element, own = _element(bits), scale_element(scales, why)
    scale = blocks.scale(own, (size,))
    grid = scale.grid(shape)
    for part in (scales, biases):
        require_shape(part, [grid], why)
    require_dtype(biases, [scales.dtype], f"{module}.scales")
    # An offset is subtracted: what is added has its sign turned.
    bias = Parameter(name="min", field="zero_point", element=own, block=(size,), role=Role.OFFSET)
    sign = 1 << own.code_bits - 1

    def turn(values: np.ndarray) -> np.ndarray:
        codes = formats.codes_of(values)
        return codes ^ codes.dtype.type(sign)

    return Weight(
        name=array.name,
        format=formats.Format(name=f"INT{bits}", element=element, parameters=(scale, bias)),
        shape=shape,
        parts={
            "code": Part(
                array=array, element=element, unpack=lambda words: formats.unpack(words, bits)
            ),
            "scale": Part(array=scales, element=own, unpack=formats.codes_of),
            "min": Part(array=biases, element=own, unpack=turn),
        },
    )
