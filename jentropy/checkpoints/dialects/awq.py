"""Dialect `awq`: AutoAWQ's GEMM layout, 4 bits.

    X.qweight  I32 [K, N / 8]             code i of word c is column 8 c + ORDER[i]
    X.qzeros   I32 [ceil(K / g), N / 8]   the same
    X.scales   F16 or BF16 [ceil(K / g), N]

The weight is X.weight [N, K] = (q - z) * scale.
"""

from __future__ import annotations

import numpy as np

from jentropy import formats
from jentropy.errors import UnsupportedError

from .scaled import linear_weight
from .settings import Declared, group_block
from .weight import (
    Contents,
    Packed,
    Stored,
    StoredArray,
    Tensor,
    Whole,
    find,
    require_dtype,
    require_rank,
)

QWEIGHT = ".qweight"
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PER_WORD = len(ORDER)


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """A `qweight`."""
    if not array.name.endswith(QWEIGHT):
        return None
    return packed_weight(contents, array, contents.quantization or {})


def packed_weight(contents: Contents, array: StoredArray, declared: Declared) -> Tensor:
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
    require_rank(array, 2, 2)
    scales, zeros = (find(contents, f"{module}.{key}", name) for key in ("scales", "qzeros"))
    for words in (array, zeros):
        require_dtype(words, [np.int32], why)
    stored: dict[str, Stored] = {
        "code": (array, Packed(order=ORDER, transposed=True)),
        "scale": (scales, Whole(transposed=True)),
        "zero_point": (zeros, Packed(order=ORDER, transposed=True)),
    }
    shape = (array.shape[1] * PER_WORD, array.shape[0])
    return linear_weight(name, formats.UINT4, shape, stored, block, why)
