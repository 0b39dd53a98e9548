"""Dialect `awq`: AutoAWQ's GEMM layout, 4 bits.

    X.qweight  I32 [K, N / 8]             code i of word c is column 8 c + ORDER[i]
    X.qzeros   I32 [ceil(K / g), N / 8]   the same
    X.scales   F16 or BF16 [ceil(K / g), N]

The weight is X.weight [N, K] = (q - z) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.errors import UnsupportedError
from jentropy.formats import blocks

from .scaled import scale_element
from .weight import (
    Part,
    Weight,
    find,
    group_block,
    require_dtype,
    require_matrix,
    require_shape,
)

NAME = "awq"
QWEIGHT = ".qweight"
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PER_WORD = len(ORDER)


def claims(contents: Contents) -> bool:
    """Method `awq`."""
    return contents.quant_method == NAME


def weight(contents: Contents, array: StoredArray) -> Weight | None:
    """A `qweight`."""
    if not array.name.endswith(QWEIGHT):
        return None
    return packed_weight(contents, array, contents.quantization or {})


def packed_weight(contents: Contents, array: StoredArray, declared: Mapping[str, Any]) -> Weight:
    """A `qweight` by what is declared of its module."""
    bits, version = declared.get("bits", declared.get("w_bit", 4)), declared.get("version", "gemm")
    if bits != 4 or str(version).lower() != "gemm":
        raise UnsupportedError(
            f"AWQ of {contents.declared_in}",
            file=contents.source,
            expected="4 bits, version gemm",
            found=f"{bits!r:.20} bits, version {version!r:.40}",
        )
    module = array.name.removesuffix(QWEIGHT)
    name = f"{module}.weight"
    key = "q_group_size" if "q_group_size" in declared else "group_size"
    block = group_block(declared, contents, key)
    why = f"groups of {block[0] or 'a row'} in {contents.declared_in}"
    require_matrix(array)
    require_dtype(array, [np.int32], why)
    columns, rows = array.shape[0], array.shape[1] * PER_WORD
    scales, zeros = (find(contents, f"{module}.{key}", name) for key in ("scales", "qzeros"))
    scale = blocks.scale(scale_element(scales, why), block)
    grid = scale.grid((rows, columns))
    why = f"{why}, weight {[rows, columns]}"
    require_shape(scales, [grid[::-1]], why)
    require_dtype(zeros, [np.int32], why)
    require_shape(zeros, [(grid[1], array.shape[1])], why)
    fmt = formats.Format(
        name="INT4",
        element=formats.UINT4,
        parameters=(scale, blocks.zero_point(formats.UINT4, block)),
    )
    return Weight(
        name=name,
        format=fmt,
        shape=(rows, columns),
        parts={
            "code": Part(array=array, element=formats.UINT4, unpack=_codes),
            "scale": Part(
                array=scales,
                element=scale.element,
                unpack=lambda values: formats.codes_of(values).T,
            ),
            "zero_point": Part(array=zeros, element=formats.UINT4, unpack=_codes),
        },
    )


def _codes(words: np.ndarray) -> np.ndarray:
    """[K, N / 8] words to [N, K] codes."""
    stored = formats.unpack(words, 4).reshape(*words.shape, PER_WORD)
    codes = np.empty_like(stored)
    codes[..., list(ORDER)] = stored
    return codes.reshape(words.shape[0], -1).T
