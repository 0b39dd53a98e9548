"""safetensors files: the header, and tensors as views of a memory map.

A file is a little-endian uint64 header length, a JSON header (it may end in spaces), and a buffer
that the tensors fill without holes, in row-major little-endian order. The header's raw bytes are
kept, so that the file can be written again as it was. The `safetensors` package cannot read FP8
and FP4 into NumPy, hence this reader.

References:
  https://huggingface.co/docs/safetensors, section "ElementFormat".
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jentropy.containers.tensor import first_twice, is_shape
from jentropy.errors import CorruptError, TruncatedError, UnsupportedError

from .contents import StoredArray, elsewhere, in_memory
from .faults import reading
from .mapping import File, mapped
from .remote import RemotePath

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 1_000_000
# Brackets and commas that a header may have for each tensor, and beside them, as in a text of
# metadata. What they make in memory is up to thirty times the header.
BRACKETS, COMMAS, BESIDE = 3, 16, 1 << 20
LENGTH_BYTES = 8
SUFFIX = ".safetensors"  # in letters of either case
METADATA = "__metadata__"  # key of a header that is no tensor's
# Bits of an element, and the dtype of its array. Types narrower than a byte, and those that NumPy
# has no name for, are read as the bytes that they are packed in.
DTYPES: dict[str, tuple[int, np.dtype]] = {
    name: (bits, np.dtype(dtype))
    for name, bits, dtype in (
        ("BOOL", 8, np.bool_),
        ("U8", 8, np.uint8),
        ("I8", 8, np.int8),
        ("U16", 16, np.uint16),
        ("I16", 16, np.int16),
        ("U32", 32, np.uint32),
        ("I32", 32, np.int32),
        ("U64", 64, np.uint64),
        ("I64", 64, np.int64),
        ("F16", 16, np.float16),
        ("BF16", 16, ml_dtypes.bfloat16),
        ("F32", 32, np.float32),
        ("F64", 64, np.float64),
        ("C64", 64, np.complex64),
        ("F8_E4M3", 8, ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", 8, ml_dtypes.float8_e5m2),
        ("F8_E8M0", 8, ml_dtypes.float8_e8m0fnu),
        ("F8_E4M3FNUZ", 8, ml_dtypes.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", 8, ml_dtypes.float8_e5m2fnuz),
        ("F6_E2M3", 6, np.uint8),
        ("F6_E3M2", 6, np.uint8),
        ("F4", 4, np.uint8),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsFile:
    """A file whose header has been read and checked.

    Invariants: `arrays` are in the order of their bytes and fill the buffer exactly.
    """

    path: Path
    header: bytes  # length field included
    size: int  # bytes of the file
    metadata: Mapping[str, str]
    arrays: tuple[StoredArray, ...]

    @property
    def starts(self) -> list[int]:
        """The byte that each array begins at."""
        sizes = (array.nbytes for array in self.arrays)
        return list(itertools.accumulate(sizes, initial=len(self.header)))[:-1]


def is_named(name: str) -> bool:
    """Whether a file's name is that of a safetensors file."""
    return name.lower().endswith(SUFFIX)


def read(path: Path) -> SafetensorsFile:
    """Reads the header and maps the buffer; no tensor is read.

    Raises:
      TruncatedError: the file is shorter than it says.
      CorruptError: a header that contradicts itself or the file.
      UnsupportedError: a dtype that safetensors does not define.
    """
    file = File(path)
    with reading(path):
        size = path.stat().st_size
        prefix = bytes(file.read(0, LENGTH_BYTES))
        if len(prefix) < LENGTH_BYTES:
            raise TruncatedError(
                "safetensors file", file=path, expected="at least 8 bytes", found=f"{size} bytes"
            )
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise CorruptError(
                "safetensors header length",
                file=path,
                expected=f"at most {MAX_HEADER_BYTES} bytes",
                found=length,
            )
        if LENGTH_BYTES + length > size:
            raise TruncatedError(
                "safetensors header",
                file=path,
                expected=f"{length} bytes",
                found=f"{size - LENGTH_BYTES} bytes in the file",
            )
        header = bytes(file.read(LENGTH_BYTES, length))
    entries = parse_header(path, header)
    metadata = entries.pop(METADATA, None)
    return SafetensorsFile(
        path=path,
        header=prefix + header,
        size=size,
        metadata=text_metadata(metadata),
        arrays=_arrays(path, entries, LENGTH_BYTES + length, size),
    )


def text_metadata(metadata: Any) -> dict[str, str]:
    """`__metadata__` as far as it is what the format allows: strings by name."""
    items = metadata.items() if isinstance(metadata, dict) else ()
    return {key: text for key, text in items if isinstance(text, str)}


def parse_header(path: Path, header: bytes) -> dict[str, Any]:
    """The JSON of a header, every name once.

    Raises:
      CorruptError: no JSON object, a name that occurs twice, or more than any checkpoint has.
    """

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            twice = first_twice(name for name, _ in pairs)
            raise CorruptError("safetensors header names it twice", file=path, tensor=twice)
        return entries

    tensors = header.count(b'"data_offsets"')
    brackets, commas = header.count(b"[") + header.count(b"{"), header.count(b",")
    most = BRACKETS * tensors + BESIDE, COMMAS * tensors + 2 * BESIDE
    if tensors > MAX_TENSORS or brackets > most[0] or commas > most[1]:
        raise CorruptError(
            "safetensors header",
            file=path,
            expected=f"at most {MAX_TENSORS} tensors and little else",
            found=f"{tensors} tensors, {brackets} brackets and {commas} commas",
        )
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"safetensors header is no JSON: {error}", file=path) from error
    if not isinstance(entries, dict):
        raise CorruptError(
            "safetensors header", file=path, expected="an object", found=type(entries).__name__
        )
    return entries


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63  # a bool is another type


def _arrays(path: Path, entries: dict[str, Any], start: int, size: int) -> tuple[StoredArray, ...]:
    checked = []
    for name, entry in entries.items():
        fields = entry if isinstance(entry, dict) else {}
        offsets, shape, dtype = (fields.get(key) for key in ("data_offsets", "shape", "dtype"))
        if not (
            isinstance(offsets, list)
            and len(offsets) == 2
            and isinstance(shape, list)
            and all(map(_is_size, [*offsets, *shape]))
            and is_shape(shape)
        ):
            raise CorruptError(
                "safetensors header entry",
                file=path,
                tensor=name,
                expected="dtype, a possible shape and two data_offsets",
                found=f"{entry!r:.80}",
            )
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise UnsupportedError(
                "dtype", file=path, tensor=name, expected="a safetensors dtype", found=repr(dtype)
            )
        checked.append((offsets[0], offsets[1], name, dtype, tuple(shape)))
    checked.sort(key=lambda item: item[:2])

    arrays, at = [], 0
    buffer = None
    for begin, end, name, dtype, shape in checked:
        bits, array_dtype = DTYPES[dtype]
        expected = math.prod(shape) * bits
        if begin != at or end < begin or 8 * (end - begin) != expected:
            raise CorruptError(
                "data_offsets",
                file=path,
                tensor=name,
                expected=f"[{at}, {at + expected // 8}] for {dtype} {list(shape)}",
                found=[begin, end],
            )
        at = end
        if start + end > size:
            raise TruncatedError(
                "safetensors file",
                file=path,
                tensor=name,
                expected=f"{start + end} bytes or more",
                found=f"{size} bytes",
            )
        shown = shape if 8 * array_dtype.itemsize == bits else (end - begin,)
        if isinstance(path, RemotePath):
            arrays.append(elsewhere(name, shown, array_dtype, path, start + begin))
            continue
        if buffer is None:
            buffer = mapped(path, size)
        values = buffer[start + begin : start + end].view(array_dtype)
        arrays.append(in_memory(name, values.reshape(shown), path))
    if start + at != size:
        raise CorruptError(
            "safetensors buffer", file=path, expected=f"{at} bytes", found=f"{size - start} bytes"
        )
    return tuple(arrays)
