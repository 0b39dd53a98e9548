"""GGUF files, read with the `gguf` package (extra `gguf`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jentropy.errors import CorruptError, UnsupportedError

from .contents import Contents, StoredArray

SUFFIX = ".gguf"
BIG_ENDIAN = " big-endian"  # in the packing's name
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """A GGUF file whose metadata has been read.

    Attributes:
      arrays: its tensors in the order of their bytes. One of blocks is uint8[..., bytes of a row],
        with the type's name as its packing. So is any other, of a block each, whose numbers are in
        the order of bytes that this machine does not have.
      starts: the byte that each begins at.
    """

    path: Path
    arrays: tuple[StoredArray, ...]
    starts: tuple[int, ...]

    def contents(self) -> Contents:
        """What a dialect reads."""
        return Contents(source=self.path, arrays={array.name: array for array in self.arrays})


def read(path: Path) -> GgufFile:
    """Reads the metadata of a GGUF file and maps its tensors.

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
        reader = gguf.GGUFReader(path, "r")
        found = sorted(reader.tensors, key=lambda t: t.data_offset)
        swapped = reader.byte_order == "S"
        arrays = tuple(_array(path, tensor, swapped=swapped) for tensor in found)
        starts = tuple(int(tensor.data_offset) for tensor in found)
    except Exception as error:  # the package raises whatever NumPy does
        what = " ".join(str(error).split()) or type(error).__name__
        raise CorruptError(f"GGUF cannot be read: {what:.200}", file=path) from error
    at = 0
    for array, start in zip(arrays, starts, strict=True):
        if start < at:
            raise CorruptError(
                "GGUF tensor",
                file=path,
                tensor=array.name,
                expected=f"at byte {at} or after",
                found=start,
            )
        at = start + array.read().nbytes
    if len({array.name for array in arrays}) < len(arrays):
        raise CorruptError("GGUF names a tensor twice", file=path)
    return GgufFile(path=path, arrays=arrays, starts=starts)


def _array(path: Path, tensor: Any, *, swapped: bool) -> StoredArray:
    kind = tensor.tensor_type.name
    shape = tuple(int(n) for n in reversed(tensor.shape))
    data = tensor.data
    if swapped and kind != "I8":
        values, kind = data.view(np.uint8).reshape(*shape[:-1], -1), kind + BIG_ENDIAN
    elif kind in _NUMBERS:
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
