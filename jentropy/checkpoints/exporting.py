"""Quantised models as other tools store them: what these read back are the same numbers.

    compressed-tensors  integers of 4 and 8 bits by groups or rows (pack-quantized), FP8 by rows or
                        blocks (float-quantized), MXFP4 (mxfp4-pack-quantized), NVFP4 whose scale
                        of a tensor divides (nvfp4-pack-quantized): recipe `rtn-nvfp4-divisor`
    gptq                integers of 4 and 8 bits by groups or rows, format 1, whose readers add 1 to
                        zero points
    gguf                Q8_0 and Q4_0: integers of 8 and 4 bits in blocks of 32, FP16 scales

The first two write a directory in Hugging Face form; `gguf` writes such a directory with one
`model.gguf`, which llama.cpp runs if it knows the model (`gguf_models`). All projections have one
format. A format that a tool has no place for is refused, and so is a scale that its dtype would
round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import (
    BF16,
    FP8_E4M3,
    FP16,
    FP32,
    INT4,
    INT8,
    MXFP4,
    NVFP4_DIVISOR,
    WHOLE,
    Format,
    QuantizedTensor,
    Role,
    pack,
)

from . import durable, gguf_models, gguf_writing
from .contents import CONFIG
from .faults import writing
from .mirrors import destination
from .safetensors import DTYPES, LENGTH_BYTES
from .staging import OUT, expect_free, put_in_place, staged

WEIGHT = ".weight"
PURPOSE = "export"
WORD = np.int32
Arrays = dict[str, np.ndarray]
# Of a module, its weight's arrays and what the config says of all of them.
Exported = tuple[Arrays, dict[str, Any]]
NAMES = {dtype: name for name, (bits, dtype) in DTYPES.items() if bits == 8 * dtype.itemsize}


def export(
    path: str | Path,
    tensors: Mapping[str, QuantizedTensor | np.ndarray],
    tool: str,
    *,
    beside: Mapping[str, str],
    overwrite: bool = False,
) -> None:
    """Writes a directory that a tool reads.

    Args:
      path: must not exist; appears whole or not at all.
      tensors: by name, `X.weight` of quantised ones; all that are have one format.
      tool: a key of `EXPORTS`, or gguf.
      beside: texts by name, `config.json` among them.
      overwrite: whether a directory that is there is replaced, if `config.json` lies in it.

    Raises:
      UnsupportedError: another tool, or a format that it has no place for.
      InputError: scales that the tool's dtype would round.
    """
    target, texts = expect_place(path, tool, overwrite=overwrite), dict(beside)
    arrays: Arrays = {}
    if tool != "gguf":
        arrays, declared = _exported(tensors, tool)
        config = json.loads(texts[CONFIG])
        texts[CONFIG] = json.dumps({**config, "quantization_config": declared}, indent=2)
    replaces = _other if overwrite else None
    with staged(target, PURPOSE, replaces=replaces) as stage, writing(target):
        made = stage / OUT
        made.mkdir()
        for name, text in texts.items():
            durable.write(made / name, text.encode())
        if tool == "gguf":
            with (made / "model.gguf").open("wb") as stream:
                told = gguf_models.told(texts, list(tensors))
                gguf_writing.write(stream, _gguf(tensors, told), told.metadata)
        else:
            _write_safetensors(made / "model.safetensors", arrays)
        durable.sync_tree(made)
        put_in_place(made, target, replace=overwrite)


def expect_place(path: str | Path, tool: str, *, overwrite: bool) -> Path:
    """Where `export` will write, which raises nothing else before it looks at tensors.

    Raises:
      UnsupportedError: another tool.
      DestinationError: something is there that may not be replaced.
    """
    if tool not in (*EXPORTS, "gguf"):
        known = " or ".join((*EXPORTS, "gguf"))
        raise UnsupportedError("tool to export to", expected=known, found=tool)
    target = destination(path)
    expect_free(target, PURPOSE, _other if overwrite else None)
    return target


def _other(found: Path) -> str:
    """What a path holds, if that is no model's directory."""
    return "" if (found / CONFIG).is_file() else f"no {CONFIG}"


def _exported(
    tensors: Mapping[str, QuantizedTensor | np.ndarray], tool: str
) -> tuple[Arrays, dict[str, Any]]:
    arrays: Arrays = {}
    declared: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, QuantizedTensor):
            arrays[name] = tensor
            continue
        module = name.removesuffix(WEIGHT)
        try:
            made, told = EXPORTS[tool](tensor)
        except InputError as error:
            raise error.at(tensor=name) from error
        if declared and told != declared:
            raise UnsupportedError("formats to export", expected="one", found="several")
        declared = told
        arrays |= {f"{module}.{key}": array for key, array in made.items()}
    if not declared:
        raise InputError("nothing is quantised")
    ignored = [
        name.removesuffix(WEIGHT)
        for name, tensor in tensors.items()
        if isinstance(tensor, np.ndarray) and tensor.ndim == 2 and name.endswith(WEIGHT)
    ]
    return arrays, FINISH[tool](declared, ignored)


# Parts of formats.


def _symmetric(number_format: Format) -> tuple[int, int]:
    """Bits, and weights of a row that share a scale (WHOLE: all), of a format of integers."""
    bits = {INT4.name: 4, INT8.name: 8}.get(number_format.element.name)
    if bits is None or not number_format.is_elementwise or len(number_format.parameters) != 1:
        raise _no_place(number_format)
    (scale,) = number_format.parameters
    rows, columns = (1, *(scale.block or (WHOLE, WHOLE)))[-2:]
    if scale.role is not Role.SCALE or rows != 1:
        raise _no_place(number_format)
    return bits, columns


def _no_place(number_format: Format) -> UnsupportedError:
    expected = "symmetric INT4 or INT8; for compressed-tensors FP8, MXFP4 or NVFP4 too"
    return UnsupportedError("format to export", expected=expected, found=number_format.name)


def _numbers(tensor: QuantizedTensor, name: str, dtype: Any) -> np.ndarray:
    """A parameter in a dtype.

    Raises:
      InputError: it has numbers that the dtype would round.
    """
    element = tensor.number_format.parameter(name).element
    numbers = np.asarray(element.decode(np.asarray(tensor.codes[name])))
    made = numbers.astype(dtype)
    if not np.array_equal(made.astype(np.float32), numbers):
        raise InputError("scales", expected=f"numbers of {np.dtype(dtype).name}", found="others")
    return made


def _offset(tensor: QuantizedTensor, bits: int) -> np.ndarray:
    """Codes of signed integers as how far they are above the least one."""
    return np.asarray(tensor.codes["code"]) ^ np.uint8(1 << (bits - 1))


def _words(codes: np.ndarray, bits: int) -> np.ndarray:
    return np.ascontiguousarray(pack(codes, bits, np.uint32)).view(WORD)


# compressed-tensors.


def _compressed_tensors(tensor: QuantizedTensor) -> Exported:
    number_format, shape = tensor.number_format, tensor.shape
    told: dict[str, Any] = {"dynamic": False, "symmetric": True}
    if number_format == MXFP4:
        code, powers = (np.asarray(tensor.codes[key]) for key in ("code", "scale"))
        packed = {"weight_packed": pack(code, 4), "weight_scale": powers}
        told |= {"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32}
        return packed, {"format": "mxfp4-pack-quantized", "weights": told}
    if number_format == NVFP4_DIVISOR:
        scales = np.asarray(tensor.codes["scale"]).view(ml_dtypes.float8_e4m3fn)
        level = _numbers(tensor, "tensor_scale", np.float32).reshape(1)
        packed = {"weight_packed": pack(np.asarray(tensor.codes["code"]), 4)}
        packed |= {"weight_scale": scales, "weight_global_scale": level}
        told |= {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16}
        return packed, {"format": "nvfp4-pack-quantized", "weights": told}
    if number_format.element == FP8_E4M3 and len(number_format.parameters) == 1:
        (scale,) = number_format.parameters
        told |= {"type": "float", "num_bits": 8}
        if scale.block == (1, WHOLE):
            told |= {"strategy": "channel"}
        elif scale.block is not None and len(scale.block) == 2 and WHOLE not in scale.block:
            told |= {"strategy": "block", "block_structure": list(scale.block)}
        else:
            raise _no_place(number_format)
        floats = np.asarray(tensor.codes["code"]).view(ml_dtypes.float8_e4m3fn)
        dtype = ml_dtypes.bfloat16 if scale.element == BF16 else np.float32
        made = {"weight": floats, "weight_scale": _numbers(tensor, scale.name, dtype)}
        return made, {"format": "float-quantized", "weights": told}
    bits, block = _symmetric(number_format)
    element = number_format.parameters[0].element
    dtypes = {FP16: np.float16, FP32: np.float32, BF16: ml_dtypes.bfloat16}
    name = number_format.parameters[0].name
    told |= {"type": "int", "num_bits": bits}
    told |= {"strategy": "group", "group_size": block} if block else {"strategy": "channel"}
    return {
        "weight_packed": _words(_offset(tensor, bits), bits),
        "weight_scale": _numbers(tensor, name, dtypes.get(element, np.float32)),
        "weight_shape": np.array(shape, np.int64),
    }, {"format": "pack-quantized", "weights": told}


def _declare_compressed_tensors(told: dict[str, Any], ignored: list[str]) -> dict[str, Any]:
    group = {**told, "input_activations": None, "output_activations": None, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": told["format"],
        "config_groups": {"group_0": group},
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


# GPTQ.


def _gptq(tensor: QuantizedTensor) -> Exported:
    bits, block = _symmetric(tensor.number_format)
    rows, columns = tensor.shape
    per_word = 32 // bits
    if rows % per_word or columns % per_word:
        raise UnsupportedError(
            "rows and columns", expected=f"multiples of {per_word}", found=list(tensor.shape)
        )
    scales = _numbers(tensor, tensor.number_format.parameters[0].name, np.float16)
    group = block or columns
    zeros = np.full((scales.shape[1], rows), (1 << (bits - 1)) - 1, np.uint8)  # less 1: format 1
    return {
        "qweight": np.ascontiguousarray(_words(_offset(tensor, bits), bits).T),
        "qzeros": _words(zeros, bits),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": (np.arange(columns) // group).astype(np.int32),
    }, {"bits": bits, "group_size": block or -1}


def _declare_gptq(told: dict[str, Any], ignored: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        **told,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "pack_dtype": "int32",
    }


EXPORTS: dict[str, Callable[[QuantizedTensor], Exported]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
}
FINISH: dict[str, Callable[[dict[str, Any], list[str]], dict[str, Any]]] = {
    "compressed-tensors": _declare_compressed_tensors,
    "gptq": _declare_gptq,
}


# Files.


def _write_safetensors(file: Path, arrays: Arrays) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        if array.dtype not in NAMES:
            raise UnsupportedError(
                "dtype", tensor=name, expected="one of a file", found=array.dtype
            )
        start, end = end, end + array.nbytes
        entries[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % LENGTH_BYTES)
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
        for array in arrays.values():
            stream.write(np.ascontiguousarray(array).tobytes())


def _gguf(
    tensors: Mapping[str, QuantizedTensor | np.ndarray], told: gguf_models.Told
) -> dict[str, gguf_writing.Stored]:
    """Tensors as they lie in a file: vectors in float32, integers in blocks of 32."""
    made = {}
    for name, tensor in tensors.items():
        rows = told.rows(name, tensor.shape[0])
        try:
            if isinstance(tensor, QuantizedTensor):
                found = _blocks(tensor, rows)
            else:
                values = tensor.astype(np.float32) if tensor.ndim == 1 else tensor
                found = gguf_writing.array(values if rows is None else values[rows])
        except KeyError as error:
            raise UnsupportedError("dtype", tensor=name, expected="one of GGUF") from error
        except InputError as error:
            raise error.at(tensor=name) from error
        made[told.names[name]] = found
    return made


def _blocks(tensor: QuantizedTensor, rows: np.ndarray | None) -> gguf_writing.Stored:
    bits, block = _symmetric(tensor.number_format)
    columns = tensor.shape[1]
    if block != gguf_writing.BLOCK or columns % block:
        raise UnsupportedError(
            "groups", expected=f"of {gguf_writing.BLOCK}", found=block or columns
        )
    scale = _numbers(tensor, tensor.number_format.parameters[0].name, np.float16)
    code = np.asarray(tensor.codes["code"])
    if rows is not None:
        code, scale = code[rows], scale[rows]
    return gguf_writing.blocks(bits, code, scale)
