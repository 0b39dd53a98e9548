"""GGUF files, read with the `gguf` package (extra `gguf`).

In big-endian files numbers of several bytes lie the other way round. Their arrays are kept as
bytes, with a packing that ends in BIG; `native` swaps them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jentropy.errors import CorruptError, InputError, UnsupportedError, said
from jentropy.formats import FP16

from . import mapping
from .contents import StoredArray, in_memory
from .faults import opened
from .gguf_blocks import PACKINGS

SUFFIX = ".gguf"  # in letters of either case
BIG = " big-endian"
# What the package, and NumPy in it, raise for files that are damaged.
DAMAGED = (ValueError, LookupError, OverflowError, TypeError, RecursionError)
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
        with the type's name as its packing. Of a big-endian file all are, but for those of single
        bytes.
      starts: the byte that each begins at.
    """

    path: Path
    arrays: tuple[StoredArray, ...]
    starts: tuple[int, ...]


def is_named(name: str) -> bool:
    """Whether a file's name is that of a GGUF file."""
    return name.lower().endswith(SUFFIX)


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
    os.close(opened(path))
    try:
        reader = _reader()(path, "r")
        mapping.watch(reader.data, path)
        big = reader.endianess == gguf.GGUFEndian.BIG
        tensors = sorted(reader.tensors, key=lambda t: t.data_offset)
        arrays = tuple(_array(path, tensor, big=big) for tensor in tensors)
        starts = tuple(int(tensor.data_offset) for tensor in tensors)
    except OSError as error:
        raise InputError(f"cannot be read: {said(error)}", file=path) from error
    except DAMAGED as error:
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


@cache
def _reader() -> Any:
    """The package's class of readers, without the elements of arrays among the metadata.

    Each would be an array of its own, as many as the file says, whether it has them or not.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < count:
                raise ValueError("it ends within its metadata")
            return found

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind = int(self._get(orig_offs, np.uint32)[0])
            count, at = int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12
            scalar = self.gguf_scalar_to_np.get(kind)
            if scalar is not None:
                at += self._get(at, scalar, count).nbytes
            else:
                for _ in range(count):
                    at += self._get_field_parts(at, kind)[0]
            return at - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]

    return Reader


def _array(path: Path, tensor: Any, *, big: bool) -> StoredArray:
    kind = tensor.tensor_type.name
    shape = tuple(int(n) for n in reversed(tensor.shape))
    data = tensor.data
    if big and np.dtype(_NUMBERS.get(kind, np.float16)).itemsize > 1:
        values = data.view(np.uint8).reshape(*shape[:-1], -1)
        kind += BIG
    elif kind in _NUMBERS:
        values = data.view(_NUMBERS[kind]).reshape(shape)
        kind = ""
    else:
        values = data.reshape(*shape[:-1], -1)
    return in_memory(tensor.name, values, path, kind)


def native(array: StoredArray) -> StoredArray:
    """An array with its numbers in little-endian order; of an unknown type it stays as it is."""
    kind = array.packing.removesuffix(BIG)
    if kind == array.packing:
        return array
    if kind in _NUMBERS:
        dtype = np.dtype(_NUMBERS[kind])

        def numbers(stored: np.ndarray) -> np.ndarray:
            swapped = stored.reshape(-1, dtype.itemsize)[:, ::-1]
            return np.ascontiguousarray(swapped).view(dtype).reshape(*stored.shape[:-1], -1)

        shape = (*array.shape[:-1], array.shape[-1] // dtype.itemsize)
        return _changed(replace(array, shape=shape, dtype=dtype, packing=""), array, numbers)
    packing = PACKINGS.get(kind)
    if packing is None:
        return array

    def blocks(stored: np.ndarray) -> np.ndarray:
        swapped, at = stored.reshape(-1, packing.bytes).copy(), 0
        for end, element in packing.fields.values():
            if element is FP16:  # one number
                swapped[:, at:end] = swapped[:, at:end][:, ::-1].copy()
            at = end
        return swapped.reshape(stored.shape)

    return _changed(replace(array, packing=kind), array, blocks)


def _changed(
    described: StoredArray, array: StoredArray, change: Callable[[np.ndarray], np.ndarray]
) -> StoredArray:
    """An array so described that has the rows of another one, changed."""
    part = array.part
    return replace(
        described,
        read=lambda: change(array.read()),
        part=None if part is None or len(array.shape) < 2 else lambda index: change(part(index)),
    )
