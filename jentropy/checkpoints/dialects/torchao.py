"""Dialect `torchao`: tensor subclasses, named in the safetensors metadata.

    __metadata__["X.weight"] = JSON {"_type", "_data": {...}, "_tensor_data_names": [...]}
    X._weight_qdata, X._weight_scale, X._weight_zero_point, X._weight_per_tensor_scale

    Float8Tensor            qdata F8_E4M3 or F8_E5M2; scale F32 by `block_size`
    Int8Tensor, IntxUnpackedToInt8Tensor   qdata I8; scale and zero point by `block_size`
    NVFP4Tensor             qdata U8 [N, K / 2], low half first; scale F8_E4M3, per tensor F32 []

NVFP4's scales may be swizzled for the tensor core.
"""

from __future__ import annotations

from collections.abc import Mapping

from jentropy import formats
from jentropy.errors import InputError, UnsupportedError

from .scaled import fp4_weight, fp8_element, linear_weight
from .settings import Declared, is_size
from .weight import Contents, Stored, StoredArray, Swizzled, Tensor, find, read_json

QDATA, FLOAT8 = "_qdata", "Float8Tensor in __metadata__"


def claims(contents: Contents) -> bool:
    """Metadata that names tensor subclasses."""
    return any('"_tensor_data_names"' in text for text in contents.metadata.values())


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """The `qdata` of a parameter that is a tensor subclass."""
    if not array.name.endswith(QDATA):
        return None
    stem = array.name.removesuffix(QDATA) + "_"
    module, dot, parameter = array.name.removesuffix(QDATA).rpartition(".")
    name = module + dot + parameter.removeprefix("_")
    told = read_json(array.file, contents.metadata.get(name, "null"))
    data = told.get("_data") if isinstance(told, Mapping) else None
    if not isinstance(data, Mapping):
        raise InputError(
            "__metadata__",
            file=array.file,
            tensor=name,
            expected="its tensor subclass with _data",
            found=f"{told!r:.60}",
        )
    names = told.get("_tensor_data_names")
    for part in names if isinstance(names, list) else ():
        find(contents, f"{stem}{part}", name)
    match told.get("_type"):
        case "Float8Tensor":
            return _scaled(contents, name, stem, array, data, fp8_element(array, FLOAT8))
        case "Int8Tensor" | "IntxUnpackedToInt8Tensor":
            return _scaled(contents, name, stem, array, data, formats.INT8)
        case "NVFP4Tensor":
            return _nvfp4(contents, name, stem, array, data)
        case kind:
            raise UnsupportedError(
                "tensor subclass",
                file=array.file,
                tensor=name,
                expected="Float8Tensor, Int8Tensor, IntxUnpackedToInt8Tensor or NVFP4Tensor",
                found=f"{kind!r:.60}",
            )


def _scaled(
    contents: Contents,
    name: str,
    stem: str,
    code: StoredArray,
    data: Declared,
    element: formats.ElementFormat,
) -> Tensor:
    """FP8 or INT8, in which 4-bit numbers may lie too: the format is that of what is stored."""
    sizes = data.get("block_size")
    sizes = sizes if isinstance(sizes, list) and all(map(is_size, sizes)) else []
    if len(sizes) != len(code.shape):
        raise InputError(
            "block_size in __metadata__",
            file=code.file,
            tensor=name,
            expected=f"one size for each axis of {list(code.shape)}",
            found=f"{data.get('block_size')!r:.60}",
        )
    why, block = f"block_size {sizes} in __metadata__", tuple(sizes)
    scale = find(contents, f"{stem}scale", name)
    stored: dict[str, Stored] = {"code": code, "scale": scale}
    is_integer = element is formats.INT8
    if is_integer and (zero := contents.arrays.get(f"{stem}zero_point")) is not None:
        stored["zero_point"] = zero
    is_block = any(1 < n < size for n, size in zip(block, code.shape, strict=True))
    named = "FP8_BLOCK" if is_block and not is_integer else element.name
    return linear_weight(name, element, code.shape, stored, block, why, named=named)


def _nvfp4(contents: Contents, name: str, stem: str, code: StoredArray, data: Declared) -> Tensor:
    size = data.get("block_size", 16)
    why = f"block_size {size!r:.20} in __metadata__"
    if not is_size(size):
        raise InputError(
            "NVFP4Tensor", file=code.file, tensor=name, expected="a block_size", found=why
        )
    scale = find(contents, f"{stem}scale", name)
    level = contents.arrays.get(f"{stem}per_tensor_scale")
    is_swizzled = bool(data.get("is_swizzled_scales"))
    number_format = formats.NVFP4.with_parameter("scale", block=(size,))
    stored = (scale, Swizzled()) if is_swizzled else scale
    return fp4_weight(name, number_format, code, stored, level, why)
