"""GGUF files, read with the `gguf` package (extra `gguf`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jentropy.errors import CorruptError, UnsupportedError

from .contents import Contents, StoredArray

SUFFIX = ".gguf"
# Types that are arrays of numbers, and their dtypes; all others are bytes in blocks.
_NUMBERS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}


def read(path: Path) -> Contents:
    """Reads the metadata of a GGUF file and maps its tensors.

    A tensor of blocks is uint8[..., bytes of a row], with the type's name as its packing.

    Raises:
      UnsupportedError: the package is not installed.
      CorruptError: a file that it cannot read.
    """
    try:
        import gguf
    except ImportError as error:
        raise UnsupportedError(
            "GGUF file",
            file=path,
            expected="the package gguf",
            found="none",
            hint="install the extra 'gguf'",
        ) from error
    try:
        found = gguf.GGUFReader(path, "r").tensors
    except Exception as error:  # the package raises whatever NumPy does
        what = " ".join(str(error).split()) or type(error).__name__
        raise CorruptError(f"GGUF cannot be read: {what:.200}", file=path) from error
    arrays = [_array(path, tensor) for tensor in found]
    return Contents(source=path, arrays={array.name: array for array in arrays})


def _array(path: Path, tensor: Any) -> StoredArray:
    kind = tensor.tensor_type.name
    shape = tuple(int(n) for n in reversed(tensor.shape))
    data = tensor.data
    if kind in _NUMBERS:
        values = data.view(_NUMBERS[kind]).reshape(shape)
        kind = ""
    else:
        values = data.reshape(*shape[:-1], -1)
    return StoredArray(
        name=tensor.name,
        shape=tuple(values.shape),
        dtype=values.dtype,
        file=path,
        packing=kind,
        read=lambda: values,
    )
