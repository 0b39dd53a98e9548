"""Dialect `gptq`: AutoGPTQ and GPTQModel, 4 or 8 bits.

    X.qweight  I32 [K b / 32, N]            packed along K, low bits first
    X.qzeros   I32 [ceil(K / g), N b / 32]  packed along N
    X.scales   F16 or BF16 [ceil(K / g), N]
    X.g_idx    I32 [K]                      the group of each input; scattered with `desc_act`

The weight is X.weight [N, K] = (q - z) * scale of its group. `checkpoint_format` gptq (v1) stores
z - 1, and readers add 1 to every code of the packed word, so that a carry crosses codes; gptq_v2
stores z. Where `qzeros` has no entry, a symmetric layer's z is 2^(b - 1). `dynamic` has patterns of
modules with settings of their own (`+:`) or none (`-:`); the first that matches counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import blocks

from .scaled import scale_element
from .weight import (
    Part,
    Weight,
    find,
    group_block,
    group_index,
    integer,
    require_dtype,
    require_matrix,
    require_shape,
)

NAME = "gptq"
QWEIGHT = ".qweight"
WORD_BITS = 32
INTEGERS = {4: formats.UINT4, 8: formats.UINT8}
SIGNED = {4: formats.INT4_EXCESS8, 8: formats.INT8_EXCESS128}
VERSIONS = ("gptq", "gptq_v2")


def claims(contents: Contents) -> bool:
    """Method `gptq`, but for AWQ's checkpoints under that name."""
    return contents.quant_method == NAME


def weight(contents: Contents, array: StoredArray) -> Weight | None:
    """A `qweight`."""
    if not array.name.endswith(QWEIGHT):
        return None
    declared = _declared(contents, array.name.removesuffix(QWEIGHT))
    return packed_weight(contents, array, declared, declared.get("checkpoint_format") or "gptq")


def _declared(contents: Contents, module: str) -> Mapping[str, Any]:
    """What is declared of a module."""
    declared = contents.quantization or {}
    dynamic = declared.get("dynamic")
    for pattern, own in dynamic.items() if isinstance(dynamic, Mapping) else ():
        try:
            fits = re.match(pattern.removeprefix("+:").removeprefix("-:"), module)
        except re.error as error:
            raise InputError(
                f"{contents.declared_in}: dynamic: {error}", file=contents.source
            ) from error
        if fits and pattern.startswith("-:"):
            raise InputError(
                f"quantised, though {pattern!r:.80} of {contents.declared_in} excludes it",
                file=contents.source,
                tensor=f"{module}.weight",
            )
        if fits:
            return {**declared, **own} if isinstance(own, Mapping) else declared
    return declared


def packed_weight(
    contents: Contents, array: StoredArray, declared: Mapping[str, Any], version: object
) -> Weight:
    """A `qweight` by what is declared of its module."""
    module = array.name.removesuffix(QWEIGHT)
    name = f"{module}.weight"
    bits = integer(declared, "bits", contents)
    if bits not in INTEGERS or version not in VERSIONS:
        raise UnsupportedError(
            f"GPTQ of {contents.declared_in}",
            file=contents.source,
            tensor=name,
            expected=f"4 or 8 bits, checkpoint_format {' or '.join(VERSIONS)}",
            found=f"{bits} bits, checkpoint_format {version!r:.40}",
        )
    why = f"{bits} bits in {contents.declared_in}"
    require_dtype(array, [np.int32], why)
    require_matrix(array)
    per_word = WORD_BITS // bits
    columns, rows = array.shape[0] * per_word, array.shape[1]
    block = group_block(declared, contents)
    element = INTEGERS[bits]
    scales, zeros = (find(contents, f"{module}.{key}", name) for key in ("scales", "qzeros"))
    scale = blocks.scale(scale_element(scales, why), block)
    grid = scale.grid((rows, columns))
    why = f"{why}, groups of {block[0] or 'a row'}, weight {[rows, columns]}"
    require_shape(scales, [grid[::-1]], why)
    require_dtype(zeros, [np.int32], why)
    implied = zeros.shape == (0,) and declared.get("sym", True) is True
    if implied:
        element = SIGNED[bits]
    else:
        require_shape(zeros, [(grid[1], -(-rows // per_word))], why)
    one = sum(1 << i for i in range(0, WORD_BITS, bits)) if version == "gptq" else 0

    def zero_codes(words: np.ndarray) -> np.ndarray:
        shifted = words.view(np.uint32) + np.uint32(one)
        return formats.unpack(shifted, bits, count=rows).T

    parts = {
        "code": Part(
            array=array,
            element=element,
            unpack=lambda words: formats.unpack(words, bits, axis=0).T,
        ),
        "scale": Part(
            array=scales,
            element=scale.element,
            unpack=lambda values: formats.codes_of(values).T,
        ),
    }
    parameters = (scale,) if implied else (scale, blocks.zero_point(element, block))
    if not implied:
        parts["zero_point"] = Part(array=zeros, element=element, unpack=zero_codes)
    index = contents.arrays.get(f"{module}.g_idx")
    if index is None and declared.get("desc_act") is True and grid[1] > 1:
        index = find(contents, f"{module}.g_idx", name)
    if index is not None:
        parts[formats.GROUP_INDEX] = group_index(index, columns, grid[1])
    fmt = formats.Format(name=f"INT{bits}", element=element, parameters=parameters)
    return Weight(
        name=name,
        format=fmt,
        shape=(rows, columns),
        parts=parts,
        settled=(zeros.name,) if implied else (),
    )
