"""Dialect `compressed-tensors`: what llm-compressor writes.

    formats float-quantized, naive-quantized, int-quantized, mxfp8-quantized:
      X.weight         F8_E4M3 or I8 [N, K]
      X.weight_scale   one per tensor [1], row [N, 1] or block (I8: or group); MXFP8: U8, E8M0
    mxfp4-pack-quantized:
      X.weight_packed  U8 [N, K / 2], low half first;  X.weight_scale  U8 [N, K / 32], E8M0
    nvfp4-pack-quantized:
      X.weight_packed  U8 [N, K / 2];  X.weight_scale  F8_E4M3 [N, K / g]
      X.weight_global_scale  F32 [1]: divides the scales
    pack-quantized, of 4 or 8 bits:
      X.weight_packed  I32 [N, ceil(K b / 32)], low bits first, code - 2^(b - 1)
      X.weight_scale   [N, K / g] or [N, 1];  X.weight_shape  I64 [2] = N, K
      X.weight_zero_point  I32 [ceil(N b / 32), K / g], packed along N; asymmetric only

Fused experts have `X_packed`, `X_scale`, `X_shape` of three axes. Early writers stored zero points
of symmetric schemes, too: zeros, or they are a contradiction. Which module has which scheme stands
in `compressed_schemes`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jentropy import formats
from jentropy.errors import InputError, UnsupportedError

from .compressed_schemes import Scheme, block_of, scheme_of
from .scaled import (
    base_scale,
    base_weight,
    block_weight,
    find_index,
    fp4_weight,
    is_fp8,
    linear_weight,
    mx_weight,
    scaled_weight,
)
from .settings import block_pair, integer
from .weight import (
    Contents,
    Packed,
    Shape,
    Stored,
    StoredArray,
    Tensor,
    find,
    require_dtype,
    require_rank,
    require_shape,
)

WEIGHT, PACKED = ".weight", "_packed"
PACKED_INTEGERS = "pack-quantized"
SPARSE = (".compressed", ".bitmask")
INTEGERS = {4: formats.INT4_EXCESS8, 8: formats.INT8_EXCESS128}
REORDERED = ("group", "dynamic", True)  # values of `actorder` that scatter a group's inputs


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """A packed weight, or one of FP8 or I8."""
    name = array.name.removesuffix(PACKED)
    if array.name.removesuffix(SPARSE[0]) + SPARSE[1] in contents.arrays:
        raise UnsupportedError(
            "weight", file=array.file, tensor=name, expected="a dense one", found="a sparse one"
        )
    is_code = name.endswith(WEIGHT) and (is_fp8(array) or array.dtype == np.int8)
    if name == array.name and not is_code:
        return None
    if f"{name}_scale" not in contents.arrays and (scale := base_scale(contents, array)):
        return base_weight(contents, array, scale)
    module = name.removesuffix(WEIGHT)
    scheme = scheme_of(contents, name, module)
    return _weight(contents, array, name, scheme)


def _weight(contents: Contents, array: StoredArray, name: str, scheme: Scheme) -> Tensor:
    scale = find(contents, f"{name}_scale", name)
    why = f"format {scheme.format} in {contents.declared_in}"
    match scheme.format:
        case "mxfp4-pack-quantized" | "nvfp4-pack-quantized":
            return _fp4(contents, array, scale, name, scheme, why)
        case "mxfp8-quantized":
            return mx_weight(contents, array, scale, name)
        case "pack-quantized":
            return _integers(contents, array, scale, name, scheme, why)
        case "float-quantized" | "naive-quantized" | "int-quantized" if array.dtype == np.int8:
            return _integers(contents, array, scale, name, scheme, why)
        case "float-quantized" | "naive-quantized":
            settled = _settled(contents, scheme, name)
            if scheme.weights.get("strategy") == "block":
                structure = scheme.weights.get("block_structure")
                block = block_pair(structure, "block_structure", contents)
                built = block_weight(contents, array, scale, block, name)
                return replace(built, settled=settled)
            built = scaled_weight(contents, array, scale, name)
            grid = built.number_format.parameters[0].block
            if grid != block_of(contents, scheme, why):
                require_shape(
                    scale,
                    [(), (1,), (1,) * len(array.shape)] if grid else [(*array.shape[:-1], 1)],
                    f"strategy {scheme.weights.get('strategy')} in {contents.declared_in}",
                )
            return replace(built, settled=settled)
    raise UnsupportedError(
        f"format of {contents.declared_in}",
        file=contents.source,
        tensor=name,
        expected="one that this dialect knows",
        found=repr(scheme.format),
    )


def _fp4(
    contents: Contents,
    array: StoredArray,
    scale: StoredArray,
    name: str,
    scheme: Scheme,
    why: str,
) -> Tensor:
    number_format, level = formats.MXFP4, None
    if scheme.format.startswith("nvfp4"):
        number_format = formats.NVFP4_DIVISOR
        require_dtype(scale, [formats.FP8_E4M3.dtype], why)
        level = find(contents, f"{name}_global_scale", name)
    block = block_of(contents, scheme, why)
    number_format = number_format.with_parameter("scale", block=block)
    return fp4_weight(name, number_format, array, scale, level, why)


def _settled(contents: Contents, scheme: Scheme, name: str) -> tuple[StoredArray, ...]:
    """Zero points that a symmetric scheme need not have, checked to be zeros.

    Raises:
      InputError: they are not.
    """
    stored = contents.arrays.get(f"{name}_zero_point")
    if stored is None:
        return ()
    codes = formats.codes_of(stored.read())
    scale = contents.arrays[f"{name}_scale"]
    if is_fp8(stored):
        codes = codes & 0x7F  # -0 is zero
    elif stored.dtype == np.int32 and stored.shape != scale.shape:  # packed
        bits = integer(scheme.weights, "num_bits", contents)
        codes = formats.unpack(codes, bits) - (1 << bits - 1) if bits in INTEGERS else codes + 1
    if codes.any():
        raise InputError(
            "zero points",
            file=stored.file,
            tensor=stored.name,
            expected=f"none but zeros with symmetric {scheme.weights.get('symmetric')!r:.20} in "
            f"{contents.declared_in}",
            found=list(stored.shape),
        )
    return (stored,)


def _integers(
    contents: Contents,
    array: StoredArray,
    scale: StoredArray,
    name: str,
    scheme: Scheme,
    why: str,
) -> Tensor:
    """A byte for each weight, or several weights packed in a word."""
    is_packed, settled = scheme.format == PACKED_INTEGERS, tuple[StoredArray, ...]()
    if is_packed:
        bits = integer(scheme.weights, "num_bits", contents)
        if bits not in INTEGERS:
            raise UnsupportedError(
                f"num_bits of {contents.declared_in}",
                file=contents.source,
                tensor=name,
                expected="4 or 8",
                found=bits,
            )
        require_dtype(array, [np.int32], why)
        sizes = find(contents, f"{name}_shape", name)
        shape, element = _declared_shape(sizes), INTEGERS[bits]
        why, settled = f"{why} with {bits} bits", (sizes,)
    else:
        shape, element = array.shape, formats.INT8
        require_rank(array, 1)
        if (kind := scheme.weights.get("type", "int")) != "int":
            told = f"dtype of type {kind!r:.20} by {why}"
            raise InputError(told, file=array.file, tensor=name, expected="no I8", found="I8")
    block = block_of(contents, scheme, why)
    stored: dict[str, Stored] = {
        "code": (array, Packed()) if is_packed else array,
        "scale": scale,
    }
    if scheme.weights.get("symmetric", True) is False:
        zero = find(contents, f"{name}_zero_point", name)
        require_dtype(zero, [array.dtype], why)
        stored["zero_point"] = (zero, Packed(axis=-2)) if is_packed else zero
    else:
        settled += _settled(contents, scheme, name)
    index, reordered = None, scheme.weights.get("actorder") in REORDERED
    if is_packed:
        index = find_index(
            contents, f"{name}_g_idx", name, block, shape[-1], is_reordered=reordered
        )
    return linear_weight(name, element, shape, stored, block, why, index=index, settled=settled)


def _declared_shape(array: StoredArray) -> Shape:
    require_shape(array, [(2,), (3,)], "pack-quantized")
    require_dtype(array, [np.int64, np.int32], "pack-quantized")
    sizes = tuple(int(n) for n in array.read())
    if min(sizes) < 0:
        raise InputError(
            "values", file=array.file, tensor=array.name, expected="sizes", found=list(sizes)
        )
    return sizes
