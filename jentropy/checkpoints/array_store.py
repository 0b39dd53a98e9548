"""Arrays as Orbax lays them in a folder: zarr, in an OCDBT store or as files, through TensorStore.

Terms: a *store* is a folder with its arrays; an array's *prefix* is what its keys begin with, its
name and a slash; its *metadata* is the JSON that zarr keeps of it (shape, dtype, chunks, codecs).
What is written with the same metadata is the same array to Orbax, chunks and codecs included.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers import memory
from jentropy.containers.tensor import is_storable
from jentropy.errors import CorruptError, UnsupportedError, said
from jentropy.schema import OBJECT, parse

from . import large_chunks, mapping, smaller_chunks
from .contents import StoredArray
from .faults import named_in, of_system
from .remote import RemotePath

MANIFEST = "manifest.ocdbt"
DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}  # by the file of an array's metadata
SLASH = re.compile(b"/")
METADATA = re.compile(rb"(.*/|)(\.zarray|zarr\.json)", re.DOTALL)  # keys of an array's metadata
CACHE_BYTES = 100_000_000  # of nodes of an OCDBT tree
TRANSACTION_BYTES = 1 << 26  # of arrays that are written at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ZarrArray:
    """An array of a store, and how it is laid out.

    Attributes:
      array: named by its prefix without the slash; its file is the folder.
      prefix: of its keys.
      metadata: of zarr.
    """

    array: StoredArray
    prefix: str
    metadata: Mapping[str, Any]


@contextmanager
def _reading(folder: Path, name: str | None = None) -> Iterator[None]:
    """Turns what keeps TensorStore from reading into one CorruptError."""
    try:
        yield
    except (ValueError, OSError) as error:  # of damaged files it raises no other
        raise CorruptError(
            f"Orbax cannot read it: {said(error)}", file=named_in(error, folder), tensor=name
        ) from error
    except CorruptError as error:
        raise error.at(file=folder, tensor=name) from error


def read_store(
    folder: Path, prefixes: Iterable[str] = (), *, complete: bool = True
) -> tuple[list[ZarrArray], dict[str, bytes]]:
    """The arrays of a store, sorted by prefix, and what else lies in it, by key.

    Bytes of a key that are no UTF-8 are surrogates.

    Args:
      folder: of the store; an OCDBT one if it has a manifest.
      prefixes: of the arrays of a store that is none.
      complete: whether a chunk that is not there is an error, or all fill values.

    Raises:
      CorruptError: a store that TensorStore cannot read.
      UnsupportedError: an array of a dtype that is not numeric.
    """
    import tensorstore as ts

    if isinstance(folder, RemotePath):
        folder.fetch_below()
    ocdbt, context = is_ocdbt(folder), _context()
    spec = _kvstore(folder, ocdbt=ocdbt)
    with _reading(folder):
        store = ts.KvStore.open(spec, context=context).result()
        keys = store.list().result() if ocdbt else []
        names = {m[1].decode(): m[2].decode() for m in map(METADATA.fullmatch, keys) if m}
        names |= {p: file for p in prefixes for file in DRIVERS if (folder / p / file).is_file()}
        texts = {prefix: store.read(prefix + file) for prefix, file in names.items()}
        opening = {}
        for prefix, file in names.items():
            text, driver = texts[prefix].result().value, DRIVERS[file]
            metadata = parse(OBJECT, text, folder / (prefix + file), "metadata of an array")
            if driver == "zarr" or metadata.get("node_type") == "array":
                array_spec = {
                    "driver": driver,
                    "kvstore": _inside(spec, prefix),
                    "fill_missing_data_reads": not complete,
                }
                opening[prefix] = metadata, ts.open(array_spec, open=True, context=context)
        arrays = [
            _array(folder, store, prefix, metadata, future.result())
            for prefix, (metadata, future) in sorted(opening.items())
        ]
        owned = {prefix.encode() for prefix in opening}
        others = {key: store.read(key) for key in keys if not _is_below(key, owned)}
        return arrays, {_text(key): future.result().value for key, future in others.items()}


def write_store(
    folder: Path,
    arrays: Iterable[tuple[str, Mapping[str, Any], np.ndarray]],
    others: Iterable[tuple[str, bytes]] = (),
    *,
    ocdbt: bool,
) -> None:
    """Writes arrays of a store (prefix, metadata, values), in the place of those that are there.

    Chunks that are too large to be written at once become smaller ones.

    Raises:
      CorruptError: metadata that are not those of such an array.
    """
    import tensorstore as ts

    folder.mkdir(parents=True, exist_ok=True)
    spec, context = _kvstore(folder, ocdbt=ocdbt), _context()
    batch, size = ts.Transaction(), 0  # OCDBT writes its tree once for each
    for prefix, metadata, values in arrays:
        array_spec = {
            "driver": "zarr3" if "node_type" in metadata else "zarr",
            "kvstore": _inside(spec, prefix),
            "metadata": dict(smaller_chunks.divided(metadata, values.itemsize)),
            "store_data_equal_to_fill_value": True,
        }
        expected: Any = (values.shape, values.dtype)
        try:
            array = _made(array_spec, transaction=batch, context=context)
            made: Any = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
        except ValueError as error:
            if of_system(error):
                raise
            expected, made = "what zarr takes", said(error)
        if made != expected:
            raise CorruptError(
                "metadata of an array",
                file=folder,
                tensor=prefix.removesuffix("/"),
                expected=expected,
                found=made,
            )
        chunk = tuple(array.chunk_layout.write_chunk.shape or values.shape)
        for part in smaller_chunks.blocks(values.shape, chunk, values.itemsize, TRANSACTION_BYTES):
            if size and size + values[part].nbytes > TRANSACTION_BYTES:
                batch.commit_sync()
                batch, size = ts.Transaction(), 0
                array = array.with_transaction(batch)
            array[part].write(  # uncopied
                values[part], can_reference_source_data_indefinitely=True
            ).result()
            size += values[part].nbytes
    batch.commit_sync()
    store = ts.KvStore.open(spec, context=context).result()
    for key, value in others:
        store.write(key.encode("utf-8", "surrogateescape"), value).result()


def _made(spec: Mapping[str, Any], **options: Any) -> Any:
    """An array of TensorStore to be written as a whole, in the place of the one that is there.

    One that is laid out as it is to be is not deleted, so that work that is killed never finds it
    gone.
    """
    import tensorstore as ts

    try:
        return ts.open(spec, create=True, open=True, **options).result()
    except ValueError as error:
        if of_system(error):
            raise
        return ts.open(spec, create=True, delete_existing=True, **options).result()


def is_ocdbt(folder: Path) -> bool:
    """Whether a folder is an OCDBT store."""
    return (folder / MANIFEST).is_file()


def _context() -> Any:
    """What the arrays of a store share; without it a transaction writes a tree for each."""
    import tensorstore as ts

    return ts.Context({"cache_pool#ocdbt": {"total_bytes_limit": CACHE_BYTES}})


def _kvstore(folder: Path, *, ocdbt: bool) -> dict[str, Any]:
    files = {"driver": "file", "path": f"{folder.resolve()}{os.sep}"}
    return {"driver": "ocdbt", "base": files} if ocdbt else files


def _inside(spec: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {**spec, "path": spec.get("path", "") + prefix}


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _is_below(key: bytes, prefixes: Set[bytes]) -> bool:
    """Whether a key begins with one of some prefixes, which are empty or end in a slash."""
    return any(key[:end] in prefixes for end in (0, *(at.end() for at in SLASH.finditer(key))))


def _array(
    folder: Path, store: Any, prefix: str, metadata: Mapping[str, Any], array: Any
) -> ZarrArray:
    name, shape, dtype = prefix[:-1], tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
    if not is_storable(dtype):
        raise UnsupportedError(
            "dtype", file=folder, tensor=name, expected="a numeric dtype", found=dtype
        )

    together = tuple(array.chunk_layout.read_chunk.shape or shape)
    size = math.prod(shape) * dtype.itemsize
    a_row = math.prod((*together[:1], *shape[1:])) * dtype.itemsize  # of chunks
    by_pieces = min(size, a_row) > large_chunks.LARGE

    def read() -> np.ndarray:
        if by_pieces:
            layout = large_chunks.layout_of(metadata, together)
            with _reading(folder, name):
                return large_chunks.read(array, store, prefix, layout, together, name)
        if size > mapping.IN_MEMORY and together[0] < shape[0]:
            return mapping.put_down(rows()).view(dtype).reshape(shape)
        memory.expect(size, f"an array of {folder}", tensor=name)
        with _reading(folder, name):
            return np.ascontiguousarray(array.read().result()).reshape(shape)

    def rows() -> Iterator[memoryview]:
        """Its bytes, some of its chunks at a time."""
        step = together[0] * max(1, mapping.IN_MEMORY // a_row)
        for start in range(0, shape[0], step):
            values = part((slice(start, min(start + step, shape[0])),))
            yield values.reshape(-1).view(np.uint8).data

    def part(index: tuple[slice, ...]) -> np.ndarray:
        with _reading(folder, name):
            return np.ascontiguousarray(array[index].read().result())

    stored = StoredArray(
        name=name,
        shape=shape,
        dtype=dtype,
        file=folder,
        read=read,
        part=None if by_pieces else part,
        together=together,
    )
    return ZarrArray(array=stored, prefix=prefix, metadata=metadata)
