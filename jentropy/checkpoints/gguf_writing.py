"""GGUF files, written: metadata, where tensors lie, and their bytes, each at a multiple of 32.

    Q4_0   18 / 32    f16 d; 16 B: low halves are elements 0-15, high halves 16-31; (q - 8) d
    Q8_0   34 / 32    f16 d; 32 int8

References:
  ggml's docs/gguf.md and gguf.h, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
BLOCK = 32  # weights
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 30}
Q4_0, Q8_0 = 2, 8
_U32, _I32, _F32, _BOOL, _TEXT, _LIST = 4, 5, 6, 7, 8, 9
Value = str | bool | int | float | list[str] | list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor as it lies in a file.

    Attributes:
      kind: its type, a number of ggml's.
      shape: of its weights.
      data: its bytes, of any dtype.
    """

    kind: int
    shape: tuple[int, ...]
    data: np.ndarray


def array(values: np.ndarray) -> Stored:
    """Numbers of a dtype in `TYPES`; KeyError for others."""
    return Stored(kind=TYPES[values.dtype], shape=values.shape, data=values)


def blocks(bits: int, code: np.ndarray, scale: np.ndarray) -> Stored:
    """Integers of 4 or 8 bits.

    Args:
      bits: of a code.
      code: uint8[rows, columns], two's complement.
      scale: float16[rows, columns / 32].
    """
    shape = code.shape
    code = code.reshape(shape[0], -1, BLOCK)
    if bits == 4:  # weights i and i + 16 share a byte
        low, high = np.split(code ^ np.uint8(8), 2, axis=-1)
        code = low | high << 4
    data = np.concatenate((scale[..., None].view(np.uint8), code), axis=-1)
    return Stored(kind=Q4_0 if bits == 4 else Q8_0, shape=shape, data=data)


def write(stream: BinaryIO, tensors: Mapping[str, Stored], metadata: Mapping[str, Value]) -> None:
    """A whole file.

    Args:
      stream: at its beginning.
      tensors: by name, in the order in which they are to lie.
      metadata: by key; whole numbers become u32, those in lists i32, others f32.
    """
    metadata = {**metadata, "general.alignment": ALIGNMENT}
    infos, offset = b"", 0
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        infos += _text(name)
        infos += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.kind, offset)
        offset += tensor.data.nbytes + -tensor.data.nbytes % ALIGNMENT
    head = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    head += b"".join(_text(key) + typed(value) for key, value in metadata.items()) + infos
    stream.write(head + bytes(-len(head) % ALIGNMENT))
    for tensor in tensors.values():
        data = np.ascontiguousarray(tensor.data).tobytes()
        stream.write(data + bytes(-len(data) % ALIGNMENT))


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def typed(value: Any) -> bytes:
    """A value behind its type.

    Raises:
      struct.error, TypeError, ValueError: it is no `Value`.
    """
    if isinstance(value, list):
        kind = _TEXT if value and isinstance(value[0], str) else _I32
        each = (_text(v) if isinstance(v, str) else struct.pack("<i", v) for v in value)
        return struct.pack("<IIQ", _LIST, kind, len(value)) + b"".join(each)
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    return struct.pack("<If", _F32, value)
