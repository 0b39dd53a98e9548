"""Arrays whose chunks are too large for memory, a piece at a time; TensorStore decodes them whole.


A chunk is read so that is zstd's frame or its numbers as they are, little-endian and in C order,
alone in its key or in its shard, which ends in an index of it (see `zarr_files`). All others are
TensorStore's.

References:
  https://zarr-specs.readthedocs.io/en/latest/specs.html
"""

from __future__ import annotations

import bisect
import io
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from jentropy.containers import memory
from jentropy.errors import CorruptError, said

from . import mapping
from .zarr_files import INDEX_BYTES, shard_index

LARGE = 1 << 26  # bytes of chunks that are decoded at once: of a row of them, across an array
PIECE = 1 << 25  # bytes of a chunk that are read at once, about
READ = 1 << 22  # bytes of its key

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How chunks lie in their keys.

    Attributes:
      begin, separator: a key is `begin` and the numbers of its chunk, with separators between.
      sharded: whether the index of a shard follows.
      packed: whether they are zstd's.
    """

    begin: str = ""
    separator: str
    sharded: bool = False
    packed: bool


def layout_of(metadata: Mapping[str, Any], chunk: Shape) -> Layout | None:
    """How the chunks of an array lie, by what zarr keeps of it; None: otherwise than is read here.

    Args:
      chunk: their shape.

    Example:
      >>> told = {"zarr_format": 2, "order": "C", "dtype": "<f4", "compressor": None}
      >>> layout_of(told, (4,))
      Layout(begin='', separator='.', sharded=False, packed=False)
    """
    match metadata:
        case {"zarr_format": 2, "order": "C", "dtype": str(dtype), "compressor": compressor}:
            known = compressor is None or compressor.get("id") == "zstd"
            if not known or metadata.get("filters") or dtype.startswith(">") or not chunk:
                return None
            separator = metadata.get("dimension_separator", ".")
            return Layout(separator=separator, packed=compressor is not None)
        case {"zarr_format": 3, "chunk_key_encoding": encoding, "codecs": codecs}:
            sharded = False
            match codecs:
                case [{"name": "sharding_indexed", "configuration": shard}]:
                    if tuple(shard["chunk_shape"]) != chunk:
                        return None
                    sharded, codecs = True, shard.get("codecs")
            options = encoding.get("configuration", {})
            begin, separator = {"default": ("c", "/"), "v2": ("", ".")}[encoding["name"]]
            separator = options.get("separator", separator)
            match codecs:
                case [{"name": "bytes"}, *packing]:
                    big = codecs[0].get("configuration", {}).get("endian") == "big"
                    known = [codec.get("name") for codec in packing] in ([], ["zstd"])
                    if known and not big:
                        return Layout(
                            begin=begin and begin + separator,
                            separator=separator,
                            sharded=sharded,
                            packed=bool(packing),
                        )
    return None


def read(
    array: Any, store: Any, prefix: str, layout: Layout | None, chunk: Shape, name: str
) -> np.ndarray:
    """An array, in a file without a name that is mapped.

    Args:
      array: of TensorStore.
      store: of keys, in which it lies.
      prefix: of its keys.
      layout: of its chunks, if they are read by pieces.
      chunk: their shape.
      name: for messages.

    Raises:
      CorruptError: a chunk that is not what it should be.
      ValueError: of TensorStore's.
    """
    shape, dtype = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
    out = mapping.room(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    grid = [range(0, size, step) for size, step in zip(shape, chunk, strict=True)]
    for begins in itertools.product(*grid):
        inside = tuple(slice(b, b + step) for b, step in zip(begins, chunk, strict=True))
        stream = None
        if layout is not None and out[inside].nbytes > PIECE:
            place = (str(begin // step) for begin, step in zip(begins, chunk, strict=True))
            key = prefix + layout.begin + layout.separator.join(place)
            stream = _opened(store, key, layout, math.prod(chunk) * dtype.itemsize)
        if stream is None:
            memory.expect(out[inside].nbytes, "a chunk of an array", tensor=name)
            out[inside] = array[inside].read().result()
        else:
            _fill(out[inside], stream, chunk, name)
    return out


def _opened(store: Any, key: str, layout: Layout, most: int) -> Any:
    """The numbers of a chunk as a stream; None if it is not there, or not as it should be.

    Args:
      most: bytes of its numbers.
    """
    if store.read(key, byte_range=slice(0, 0)).result().state != "value":
        return None

    def ends(at: int) -> bool:
        try:
            store.read(key, byte_range=slice(at, at + 1)).result()
        except ValueError:
            return True
        return False

    # No store tells the size of a value. What zstd cannot pack takes 1/256 more, and some.
    limit = most + (most >> 7) + (1 << 10)
    size = bisect.bisect_left(range(limit), True, key=ends)
    if layout.sharded:
        size -= INDEX_BYTES
        if not (0 <= size < limit - INDEX_BYTES and _ends_in(store, key, shard_index(size), size)):
            return None
    if size == limit:
        return None
    stream = io.BufferedReader(_Key(store, key, size), READ)
    if not layout.packed:
        return stream
    return zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)


def _ends_in(store: Any, key: str, end: bytes, begin: int) -> bool:
    """Whether a value has these bytes from a place on, and no more."""
    return bool(store.read(key, byte_range=slice(begin, None)).result().value == end)


class _Key(io.RawIOBase):
    """The first bytes of a value of a store."""

    def __init__(self, store: Any, key: str, size: int):
        self._store, self._key, self._size, self._at = store, key, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._store.read(self._key, byte_range=slice(self._at, end)).result().value
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _fill(out: np.ndarray, stream: Any, chunk: Shape, name: str) -> None:
    """Reads the numbers of a chunk, of whose shape an array at the edge takes a part."""
    item = out.dtype.itemsize
    sizes = [item * math.prod(chunk[n + 1 :]) for n in range(len(chunk))]
    axis = next(n for n, size in enumerate(sizes) if size <= PIECE)
    step = max(1, PIECE // sizes[axis])
    width = tuple(slice(0, size) for size in out.shape[axis + 1 :])
    for above in np.ndindex(chunk[:axis]):
        for begin in range(0, chunk[axis], step):
            rows = min(step, chunk[axis] - begin)
            data = _exactly(stream, rows * sizes[axis], name)
            values = data.view(out.dtype).reshape(rows, *chunk[axis + 1 :])
            if all(at < size for at, size in zip(above, out.shape[:axis], strict=True)):
                part = out[above][begin : begin + rows]
                part[...] = values[(slice(0, len(part)), *width)]
    if _exactly(stream, 1, name, least=0).size:
        raise CorruptError("chunk", tensor=name, expected="its end", found="more bytes")


def _exactly(stream: Any, size: int, name: str, least: int | None = None) -> np.ndarray:
    """So many bytes of a stream. uint8[size]"""
    data, at = np.empty(size, np.uint8), 0
    try:
        while at < size and (count := stream.readinto(data[at:].data)):
            at += count
    except zstandard.ZstdError as error:
        raise CorruptError(f"chunk: {said(error)}", tensor=name) from error
    if at < (size if least is None else least):
        raise CorruptError("chunk", tensor=name, expected=f"{size} bytes more", found=at)
    return data[:at]
