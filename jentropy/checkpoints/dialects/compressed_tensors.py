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

Each of `config_groups` is a scheme with targets. A module's scheme is the one that has its name as
a target; else one with a pattern that matches it (`re:`); else the first of the class Linear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from jentropy import formats
from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import Role, blocks

from .scaled import block_weight, is_fp8, mx_weight, scale_element, scaled_weight
from .weight import (
    Part,
    Shape,
    Weight,
    checked_block,
    find,
    group_index,
    integer,
    packed,
    require_dtype,
    require_rank,
    require_shape,
    whole,
)

NAME = "compressed-tensors"
WEIGHT, PACKED = ".weight", ".weight_packed"
LINEAR = "Linear"
INTEGERS = {4: formats.INT4_EXCESS8, 8: formats.INT8_EXCESS128}


@dataclass(frozen=True, slots=True)
class _Scheme:
    """The weights' part of a config group."""

    targets: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    format: str
    weights: Mapping[str, Any]

    def fits(self, module: str) -> int:
        """How well the targets name a module: 3 by its name, 2 by a pattern, 1 as a linear layer.

        Classes of modules are not in a checkpoint; that of a packed weight is Linear, as a rule.
        """
        if module in self.targets:
            return 3
        if any(pattern.match(module) for pattern in self.patterns):
            return 2
        return 1 if LINEAR in self.targets else 0


def claims(contents: Contents) -> bool:
    """Method `compressed-tensors`."""
    return contents.quant_method == NAME


def weight(contents: Contents, array: StoredArray) -> Weight | None:
    """A packed weight, or one of FP8 or I8."""
    if array.name.endswith(PACKED):
        module = array.name.removesuffix(PACKED)
    elif array.name.endswith(WEIGHT) and (is_fp8(array) or array.dtype == np.int8):
        module = array.name.removesuffix(WEIGHT)
    else:
        return None
    schemes = _schemes(contents)
    scheme = max(schemes, key=lambda s: s.fits(module))  # the first of equals
    if not scheme.fits(module) and len(schemes) > 1:
        raise UnsupportedError(
            f"config_groups of {contents.declared_in}",
            file=contents.source,
            tensor=f"{module}{WEIGHT}",
            expected=f"a target that names it, or {LINEAR}",
            found="none",
        )
    return _weight(contents, array, module, scheme)


@lru_cache(maxsize=8)  # read once for all tensors of a checkpoint
def _schemes(contents: Contents) -> tuple[_Scheme, ...]:
    declared = contents.quantization or {}
    groups = declared.get("config_groups")
    schemes = []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        targets = group.get("targets")
        targets = [t for t in targets if isinstance(t, str)] if isinstance(targets, list) else []
        try:
            patterns = tuple(re.compile(t[3:]) for t in targets if t.startswith("re:"))
        except re.error as error:
            raise InputError(
                f"{contents.declared_in}: targets: {error}", file=contents.source
            ) from error
        name = str(group.get("format") or declared.get("format"))
        schemes.append(_Scheme(frozenset(targets), patterns, name, weights))
    if not schemes:
        raise InputError(
            f"{contents.declared_in}: config_groups",
            file=contents.source,
            expected="a group with weights",
            found=f"{groups!r:.60}",
        )
    return tuple(schemes)


def _weight(contents: Contents, array: StoredArray, module: str, scheme: _Scheme) -> Weight:
    name = module + WEIGHT
    scale = find(contents, f"{name}_scale", name)
    why = f"format {scheme.format} in {contents.declared_in}"
    match scheme.format:
        case "mxfp4-pack-quantized" | "nvfp4-pack-quantized":
            return _fp4(contents, array, scale, name, scheme, why)
        case "pack-quantized":
            return _packed_integers(contents, array, scale, name, scheme, why)
        case "mxfp8-quantized":
            return mx_weight(contents, array, scale, name)
        case "float-quantized" | "naive-quantized" | "int-quantized" if array.dtype == np.int8:
            return _integers(contents, array, scale, name, scheme, why)
        case "float-quantized" | "naive-quantized":
            if scheme.weights.get("strategy") == "block":
                structure = scheme.weights.get("block_structure")
                block = checked_block(structure, "block_structure", contents)
                return block_weight(contents, array, scale, block, name)
            built = scaled_weight(contents, array, scale, name)
            grid = built.format.parameters[0].block
            if grid != _block(contents, scheme, why):
                require_shape(
                    scale,
                    _shapes((1,) * len(array.shape)) if grid else [(*array.shape[:-1], 1)],
                    f"strategy {scheme.weights.get('strategy')} in {contents.declared_in}",
                )
            return built
    raise UnsupportedError(
        f"format of {contents.declared_in}",
        file=contents.source,
        tensor=name,
        expected="one that this dialect knows",
        found=repr(scheme.format),
    )


def _block(contents: Contents, scheme: _Scheme, why: str) -> Shape | None:
    """Weights that a scale serves, by the scheme's strategy."""
    strategy = scheme.weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if scheme.weights.get("group_size") is None else "group"
        strategy = "channel" if scheme.weights.get("group_size") == -1 else strategy
    match strategy:
        case "group" | "tensor_group":
            return (integer(scheme.weights, "group_size", contents),)
        case "channel":
            return blocks.ROW[1:]
        case "tensor":
            return None
        case other:
            raise UnsupportedError(
                f"strategy of {why}",
                file=contents.source,
                expected="group, tensor_group, channel or tensor",
                found=f"{other!r:.40}",
            )


def _fp4(
    contents: Contents,
    array: StoredArray,
    scale: StoredArray,
    name: str,
    scheme: _Scheme,
    why: str,
) -> Weight:
    require_dtype(array, [np.uint8], why)
    require_rank(array, 1)
    shape = (*array.shape[:-1], 2 * array.shape[-1])
    block = _block(contents, scheme, why)
    why = f"{why}, weight {list(shape)}"
    if scheme.format.startswith("mxfp4"):
        fmt = formats.MXFP4.with_parameter("scale", block=block)
        require_dtype(scale, [np.uint8, ml_dtypes.float8_e8m0fnu], why)
    else:
        fmt = formats.NVFP4.with_parameter("scale", block=block).with_parameter(
            "tensor_scale", role=Role.DIVISOR
        )
        require_dtype(scale, [ml_dtypes.float8_e4m3fn], why)
    grid = fmt.parameter("scale").grid(shape)
    require_shape(scale, [grid], why)
    parts = {
        "code": packed(array, formats.FP4_E2M1),
        "scale": whole(scale, fmt.parameter("scale").element, grid),
    }
    if not scheme.format.startswith("mxfp4"):
        level = find(contents, f"{name}_global_scale", name)
        require_dtype(level, [np.float32], why)
        require_shape(level, [(1,), ()], why)
        parts["tensor_scale"] = whole(level, formats.FP32, (1,) * len(shape))
    return Weight(name=name, format=fmt, shape=shape, parts=parts)


def _integers(
    contents: Contents,
    array: StoredArray,
    scale: StoredArray,
    name: str,
    scheme: _Scheme,
    why: str,
) -> Weight:
    """A byte per weight."""
    shape, block = array.shape, _block(contents, scheme, why)
    why = f"{why}, weight {list(shape)}"
    parameter = blocks.scale(scale_element(scale, why), block)
    grid = parameter.grid(shape)
    require_shape(scale, _shapes(grid), why)
    parameters = [parameter]
    parts = {
        "code": whole(array, formats.INT8, shape),
        parameter.name: whole(scale, parameter.element, grid),
    }
    if _has_zero_point(contents, scheme, name):
        zero = find(contents, f"{name}_zero_point", name)
        require_dtype(zero, [np.int8], why)
        require_shape(zero, _shapes(grid), why)
        parameters.append(blocks.zero_point(formats.INT8, block))
        parts["zero_point"] = whole(zero, formats.INT8, grid)
    fmt = formats.Format(name="INT8", element=formats.INT8, parameters=tuple(parameters))
    return Weight(name=name, format=fmt, shape=shape, parts=parts)


def _has_zero_point(contents: Contents, scheme: _Scheme, name: str) -> bool:
    """Whether the scheme is asymmetric.

    Raises:
      InputError: it is symmetric, but there are zero points.
    """
    symmetric = scheme.weights.get("symmetric", True)
    stored = contents.arrays.get(f"{name}_zero_point")
    if symmetric is not False and stored is not None:
        raise InputError(
            "zero points",
            file=stored.file,
            tensor=stored.name,
            expected=f"none with symmetric {symmetric!r:.20} in {contents.declared_in}",
            found=list(stored.shape),
        )
    return symmetric is False


def _shapes(grid: Shape) -> list[Shape]:
    """How a grid may be stored: one entry has no axes, too."""
    return [grid, *([(), (1,)] if set(grid) == {1} else [])]


def _packed_integers(
    contents: Contents,
    array: StoredArray,
    scale: StoredArray,
    name: str,
    scheme: _Scheme,
    why: str,
) -> Weight:
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
    shape = _declared_shape(contents, name)
    rows, columns = shape
    per_word = 32 // bits
    why = f"{why} with {bits} bits, weight_shape {list(shape)}"
    require_shape(array, [(rows, -(-columns // per_word))], why)
    element, block = INTEGERS[bits], _block(contents, scheme, why)
    parameter = blocks.scale(scale_element(scale, why), block)
    grid = parameter.grid(shape)
    require_shape(scale, _shapes(grid), why)
    parameters = [parameter]
    parts: dict[str, Part] = {
        "code": packed(array, element, count=columns),
        parameter.name: whole(scale, parameter.element, grid),
    }
    if _has_zero_point(contents, scheme, name):
        zero = find(contents, f"{name}_zero_point", name)
        require_dtype(zero, [np.int32], why)
        require_shape(zero, [(-(-grid[0] // per_word), grid[1])], why)
        parameters.append(blocks.zero_point(element, block))
        parts["zero_point"] = packed(zero, element, axis=0, count=grid[0])
    if f"{name}_g_idx" in contents.arrays:
        parts[formats.GROUP_INDEX] = group_index(contents.arrays[f"{name}_g_idx"], columns, grid[1])
    fmt = formats.Format(name=f"INT{bits}", element=element, parameters=tuple(parameters))
    return Weight(name=name, format=fmt, shape=shape, parts=parts)


def _declared_shape(contents: Contents, name: str) -> Shape:
    array = find(contents, f"{name}_shape", name)
    require_shape(array, [(2,)], "pack-quantized")
    require_dtype(array, [np.int64, np.int32], "pack-quantized")
    rows, columns = (int(n) for n in array.read())
    if min(rows, columns) < 0:
        raise InputError(
            "values",
            file=array.file,
            tensor=array.name,
            expected="two sizes",
            found=[rows, columns],
        )
    return rows, columns
