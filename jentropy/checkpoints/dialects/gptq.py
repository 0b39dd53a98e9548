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

import numpy as np

from jentropy import formats
from jentropy.errors import InputError, UnsupportedError

from .scaled import find_index, linear_weight
from .settings import Declared, compiled, group_block, integer, mapping
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
WORD_BITS = 32
INTEGERS = {4: formats.UINT4, 8: formats.UINT8}
SIGNED = {4: formats.INT4_EXCESS8, 8: formats.INT8_EXCESS128}
VERSIONS = ("gptq", "gptq_v2")


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """A `qweight`."""
    if not array.name.endswith(QWEIGHT):
        return None
    declared = _declared(contents, array.name.removesuffix(QWEIGHT))
    return packed_weight(contents, array, declared, declared.get("checkpoint_format") or "gptq")


def _declared(contents: Contents, module: str) -> Declared:
    """What is declared of a module."""
    declared = mapping(contents.quantization)
    for pattern, settings in mapping(declared.get("dynamic")).items():
        plain = pattern.removeprefix("+:").removeprefix("-:")
        if not compiled(plain, "dynamic", contents).match(module):
            continue
        if pattern.startswith("-:"):
            raise InputError(
                f"quantised, though {pattern!r:.80} of {contents.declared_in} excludes it",
                file=contents.source,
                tensor=f"{module}.weight",
            )
        return {**declared, **mapping(settings)}
    return declared


def packed_weight(
    contents: Contents, array: StoredArray, declared: Declared, version: object
) -> Tensor:
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
    require_rank(array, 2, 2)
    scales, zeros = (find(contents, f"{module}.{key}", name) for key in ("scales", "qzeros"))
    for words in (array, zeros):
        require_dtype(words, [np.int32], why)
    rows, columns = array.shape[1], array.shape[0] * WORD_BITS // bits
    block = group_block(declared, contents)
    why = f"{why}, groups of {block[0] or 'a row'}"
    stored: dict[str, Stored] = {
        "code": (array, Packed(axis=-2, transposed=True)),
        "scale": (scales, Whole(transposed=True)),
    }
    is_implied = zeros.shape == (0,) and declared.get("sym", True) is True
    if not is_implied:
        one = sum(1 << i for i in range(0, WORD_BITS, bits)) if version == "gptq" else 0
        stored["zero_point"] = (zeros, Packed(add=one, transposed=True))
    is_reordered = declared.get("desc_act") is True
    return linear_weight(
        name,
        SIGNED[bits] if is_implied else INTEGERS[bits],
        (rows, columns),
        stored,
        block,
        why,
        index=find_index(
            contents, f"{module}.g_idx", name, block, columns, is_reordered=is_reordered
        ),
        settled=(zeros,) if is_implied else (),
    )
