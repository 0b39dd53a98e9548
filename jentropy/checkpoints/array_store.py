"""Arrays as Orbax lays them in a folder: zarr, in an OCDBT store or as files, through TensorStore.

Terms: a *store* is a folder with its arrays; an array's *prefix* is what its keys begin with, its
name and a slash; its *metadata* is the JSON that zarr keeps of it (shape, dtype, chunks, codecs).
What is written with the same metadata is the same array to Orbax, chunks and codecs included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers.tensor import is_storable
from jentropy.errors import CorruptError, UnsupportedError

MANIFEST = "manifest.ocdbt"
DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}  # by the file of an array's metadata
CACHE_BYTES = 100_000_000  # of nodes of an OCDBT tree
TRANSACTION_BYTES = 1 << 28  # of arrays that are written at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ZarrArray:
    """An array of a store, unread.

    Attributes:
      prefix: of its keys.
      metadata: of zarr.
      shape, dtype: of what `read` gives.
      folder: of its store, for messages.
    """

    prefix: str
    metadata: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: np.dtype
    folder: Path
    tensorstore: Any = field(repr=False)

    @property
    def name(self) -> str:
        """Its prefix without the slash."""
        return self.prefix.removesuffix("/")

    @property
    def size(self) -> int:
        """Elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return self.size * self.itemsize

    def read(self) -> np.ndarray:
        """The array.

        Raises:
          CorruptError: chunks that are missing or damaged.
        """
        try:
            return np.ascontiguousarray(self.tensorstore.read().result()).reshape(self.shape)
        except (ValueError, OSError) as error:
            raise _unreadable(error, self.folder, self.name) from error


def _what(error: Exception) -> str:
    """TensorStore's message without its annex."""
    return f"{str(error).split(' [')[0]:.200}"


def _unreadable(error: Exception, folder: Path, name: str | None = None) -> CorruptError:
    return CorruptError(f"Orbax cannot read it: {_what(error)}", file=folder, tensor=name)


def read_store(
    folder: Path, prefixes: Iterable[str] = (), *, complete: bool = True
) -> tuple[list[ZarrArray], dict[bytes, bytes]]:
    """The arrays of a store, sorted by prefix, and what else lies in it, by key.

    Args:
      folder: of the store; an OCDBT one if it has a manifest.
      prefixes: of the arrays of a store that is none.
      complete: whether a chunk that is not there is an error, or all fill values.

    Raises:
      CorruptError: a store that TensorStore cannot read.
      UnsupportedError: an array of a dtype that is not numeric.
    """
    import tensorstore as ts

    spec = _kvstore(folder, ocdbt=is_ocdbt(folder))
    context = _context()
    try:
        store = ts.KvStore.open(spec, context=context).result()
        keys = store.list().result() if is_ocdbt(folder) else _keys_of_files(folder, prefixes)
        found = dict(_metadata_keys(keys))
        texts = {prefix: store.read(prefix + file) for prefix, file in found.items()}
        opening = {}
        for prefix, file in found.items():
            metadata = json.loads(texts[prefix].result().value)
            if DRIVERS[file] == "zarr3" and metadata.get("node_type") != "array":
                continue
            array_spec = {
                "driver": DRIVERS[file],
                "kvstore": _inside(spec, prefix),
                "fill_missing_data_reads": not complete,
            }
            opening[prefix] = metadata, ts.open(array_spec, open=True, context=context)
        arrays = [
            _array(folder, prefix, metadata, future.result())
            for prefix, (metadata, future) in sorted(opening.items())
        ]
        others = [key for key in keys if not _belongs(key, opening)]
        return arrays, {key: store.read(key).result().value for key in others}
    except (ValueError, OSError, AttributeError) as error:
        raise _unreadable(error, folder) from error


def write_store(
    folder: Path,
    arrays: Iterable[tuple[str, Mapping[str, Any], np.ndarray]],
    others: Iterable[tuple[bytes, bytes]] = (),
    *,
    ocdbt: bool,
) -> None:
    """Writes the arrays of a store: prefix, metadata, values.

    Raises:
      CorruptError: metadata that are not those of such an array.
    """
    import tensorstore as ts

    folder.mkdir(parents=True, exist_ok=True)
    spec, context = _kvstore(folder, ocdbt=ocdbt), _context()
    batch, held = ts.Transaction(), 0  # OCDBT writes its tree once for each
    for prefix, metadata, values in arrays:
        array_spec = {
            "driver": "zarr3" if "node_type" in metadata else "zarr",
            "kvstore": _inside(spec, prefix),
            "metadata": dict(metadata),
            "store_data_equal_to_fill_value": True,
        }
        try:
            array = ts.open(array_spec, create=True, transaction=batch, context=context).result()
            found = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
        except ValueError as error:
            raise _wrong_metadata(folder, prefix, "what zarr takes", _what(error)) from error
        if found != (values.shape, values.dtype):
            raise _wrong_metadata(folder, prefix, f"{values.shape} {values.dtype}", found)
        array.write(values).result()
        held += values.nbytes
        if held >= TRANSACTION_BYTES:
            batch.commit_sync()
            batch, held = ts.Transaction(), 0
    batch.commit_sync()
    store = ts.KvStore.open(spec, context=context).result()
    for key, value in others:
        store.write(key, value).result()


def _wrong_metadata(folder: Path, prefix: str, expected: str, found: object) -> CorruptError:
    return CorruptError(
        "metadata of an array",
        file=folder,
        tensor=prefix.removesuffix("/"),
        expected=expected,
        found=found,
    )


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


def _keys_of_files(folder: Path, prefixes: Iterable[str]) -> list[bytes]:
    return [
        f"{prefix}{file}".encode()
        for prefix in prefixes
        for file in DRIVERS
        if (folder / prefix / file).is_file()
    ]


def _metadata_keys(keys: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Prefix and metadata file of every array."""
    for key in keys:
        prefix, slash, file = key.rpartition(b"/")
        if file.decode("utf-8", "replace") in DRIVERS:
            yield (prefix + slash).decode(), file.decode()


def _belongs(key: bytes, prefixes: Mapping[str, Any]) -> bool:
    """Whether a key is one of an array's: its metadata or a chunk."""
    parts = key.split(b"/")
    return any(
        (b"/".join(parts[:n]) + (b"/" if n else b"")).decode("utf-8", "replace") in prefixes
        for n in range(len(parts) - 1, -1, -1)
    )


def _array(folder: Path, prefix: str, metadata: Mapping[str, Any], array: Any) -> ZarrArray:
    dtype = np.dtype(array.dtype.numpy_dtype)
    if not is_storable(dtype):
        raise UnsupportedError(
            "dtype", file=folder, tensor=prefix[:-1], expected="a numeric dtype", found=dtype
        )
    return ZarrArray(
        prefix=prefix,
        metadata=metadata,
        shape=tuple(array.shape),
        dtype=dtype,
        folder=folder,
        tensorstore=array,
    )
