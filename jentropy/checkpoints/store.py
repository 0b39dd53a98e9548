"""A compressed checkpoint on disk: an Orbax checkpoint of plain uint8 arrays, opened for reading.

    {"bundles": {"00000": uint8[n0], "00001": uint8[n1], ...}, "index": uint8[m]}

A *bundle* is the payloads of many chunks one after another, so that thousands of small tensors are
one array. Orbax checks none of its data: the index has a checksum for every chunk, and the
checkpoint's custom metadata has the index's. Arrays are stored without OCDBT and uncompressed
(they are entropy coded already), so every array is a folder of its own with the bytes as they are:
only what is asked for is read, and few of the files are open at a time.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers.tensor import checksum
from jentropy.errors import (
    ChecksumError,
    CorruptError,
    InputError,
    TruncatedError,
    UnsupportedError,
)
from jentropy.schema import SIZE, TEXT, parse, record, row

from . import collecting, faults, zarr_files
from . import index as index_lib
from .index import KEY
from .mapping import File, mapped
from .remote import RemotePath

logger = logging.getLogger(__name__)

COMMITTED = "commit_success.txt"  # Orbax's, written last
METADATA_FILE = "_CHECKPOINT_METADATA"  # Orbax's; holds the custom metadata
ARRAYS = "state"  # Orbax's folder of the arrays, when they were saved part by part
INDEX, COPY = "index", "copy"  # arrays of the same bytes
HASH = "index_xxh3_64"
OPEN_FILES = 32  # descriptors of bundles at a time


def _size(*, shape: tuple[int], data_type: str, chunk_grid: dict[str, Any]) -> int:
    chunk = chunk_grid["configuration"]["chunk_shape"]
    if chunk != shape or data_type != "uint8":
        raise CorruptError(
            "",
            expected="one dimension of uint8 in one chunk",
            found=f"shape {list(shape)!r:.40}, chunk {list(chunk)!r:.40}, {data_type!r:.20}",
        )
    return shape[0]


# What zarr says of an array, to its bytes.
ARRAY = record(
    _size,
    {
        "shape": row(SIZE),
        "data_type": TEXT,
        "chunk_grid": record(dict, {"configuration": record(dict, {"chunk_shape": row(SIZE)})}),
    },
)


def is_compressed_checkpoint(path: Path) -> bool:
    """Whether a directory is a compressed checkpoint."""
    return _custom_metadata(path) is not None


def is_orbax_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint that Orbax wrote."""
    return any((path / name).exists() for name in (METADATA_FILE, "_METADATA", "orbax.checkpoint"))


def _custom_metadata(path: Path) -> dict[str, Any] | None:
    if not os.path.lexists(path / METADATA_FILE):
        return None
    data = faults.read_file(path / METADATA_FILE)
    try:
        told = json.loads(data)["custom_metadata"][KEY]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return told if isinstance(told, dict) else {}


class Store:
    """A compressed checkpoint, opened: its index, and payloads on demand.

    Args:
      damage: where errors go that do not keep it from being read; None: those of its metadata are
        raised, and that the copy of the index was needed is said to the logger.

    Raises:
      InputError: not a compressed checkpoint, another version, a damaged index.
    """

    def __init__(self, path: Path, damage: list[InputError] | None = None):
        self.path, self._damage = path, damage
        self.text = b""  # of the index, as it is stored; where damage is noted
        self.base: Store | None = None  # by whose tensors some of these are told, see `bases`
        if not path.exists():
            raise InputError("not a compressed checkpoint: no such file or directory", file=path)
        told = _custom_metadata(path)
        if told is None:
            self._go_on(_no_metadata(path))
        self.metadata: dict[str, Any] = told or {}
        try:
            index_lib.check_version(self.metadata.get("version"))
        except UnsupportedError as error:
            if told is not None:
                self._go_on(error.at(file=path / METADATA_FILE))
        marker = path / COMMITTED
        if isinstance(path, RemotePath) and told is not None and not marker.exists():
            self._go_on(CorruptError("commit marker", file=marker, expected="it", found="none"))
        with collecting.put_off():
            self.index = self._read_index()
        self._maps: dict[int, np.ndarray] = {}
        self._files: OrderedDict[int, File] = OrderedDict()
        self._lock = threading.Lock()

    def _go_on(self, error: InputError) -> None:
        """Notes an error, if that is wanted and there is something to go on with."""
        arrays = (self.array_path(name) for name in (INDEX, COPY))
        if self._damage is None or not any(folder.is_dir() for folder in arrays):
            raise error
        self._damage.append(error)

    def _read_index(self) -> index_lib.Index:
        """The index, or its copy if that alone is sound.

        A checkpoint whose metadata is damaged has either one that is as its own checksum says.
        """
        errors: list[InputError] = []
        names = (INDEX, COPY) if self.array_path(COPY).is_dir() else (INDEX,)
        hashes = [self.metadata[HASH]] if HASH in self.metadata else []
        for wanted in hashes or ["one"] if self._damage is None else [*hashes, None]:
            for name in names:
                try:
                    index = self._index_of(name, wanted)
                except InputError as error:
                    errors.append(error)
                    continue
                if errors and self._damage is None:
                    logger.warning("%s; its copy is used", errors[0])
                elif self._damage is not None:  # hashes are held to those of all files
                    whole = COPY not in names
                    self._damage += [e for e in errors if whole or type(e) is not ChecksumError]
                return index
        raise errors[0]

    def _index_of(self, name: str, wanted: Any) -> index_lib.Index:
        """What an array says, if it has a hash that is wanted."""
        file, folder = self.array_path(name) / zarr_files.CHUNK, self.array_path(name)
        data = self.array(name).tobytes()
        digest = f"{checksum(np.frombuffer(data, np.uint8)):016x}"
        if wanted not in (digest, None):
            raise ChecksumError("checksum of the index", file=file, expected=wanted, found=digest)
        index = index_lib.from_bytes(data, folder)
        if self._damage is not None:
            self.text = data
        return index

    def array_path(self, name: str) -> Path:
        """Folder of an array of the checkpoint."""
        return self.path / ARRAYS / name

    def bundle_path(self, bundle: int) -> Path:
        """Folder of a bundle."""
        return self.array_path(bundle_name(bundle))

    def array(self, name: str) -> np.ndarray:
        """An array of the checkpoint, mapped and not read. uint8[n]."""
        file, size = self._array_file(name)
        return mapped(file, size)

    def _array_file(self, name: str) -> tuple[Path, int]:
        """The file of an array, and how many of its bytes are that."""
        folder = self.array_path(name)
        size = _declared_size(folder)
        file = folder / zarr_files.CHUNK
        with faults.reading(file):
            on_disk = file.stat().st_size if file.is_file() else 0
        if on_disk < size:
            raise TruncatedError(
                "array of the checkpoint", file=file, expected=f"{size} bytes", found=on_disk
            )
        return file, size

    def _bundle_file(self, bundle: int) -> Path:
        """The file of a bundle, which has the bytes that the index tells of."""
        if self._damage is not None:  # which may be in what zarr says of it
            folder = self.bundle_path(bundle)
            if not (folder / zarr_files.CHUNK).is_file():
                raise CorruptError(
                    "array of the checkpoint", file=folder, expected="it", found="none"
                )
            return folder / zarr_files.CHUNK
        file, size = self._array_file(bundle_name(bundle))
        expected = self.index.bundles[bundle]
        if size != expected:
            raise CorruptError(
                "bundle",
                file=self.bundle_path(bundle),
                expected=f"{expected} bytes",
                found=size,
            )
        return file

    def _opened(self, bundle: int) -> File:
        """A bundle's file; it closes when nobody reads it any more."""
        with self._lock:
            stream = self._files.get(bundle)
            if stream is None:
                stream = self._files[bundle] = File(self._bundle_file(bundle))
            self._files.move_to_end(bundle)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
            return stream

    def no_base(self) -> InputError:
        """The error of a base that is needed and was not given."""
        return InputError(
            "base",
            file=self.path,
            expected=f"the compressed checkpoint of digest {self.index.base or 0:016x}",
            found="none",
            hint="name it with --base, or base=",
        )

    def payload(self, bundle: int, offset: int, size: int) -> np.ndarray:
        """Payloads in a bundle, read and unchecked. uint8[size]."""
        with faults.reading(self.bundle_path(bundle)):
            data = self._opened(bundle).read(offset, size)
        if len(data) != size:
            raise TruncatedError(
                "bundle",
                file=self.bundle_path(bundle),
                expected=f"{size} bytes from {offset} on",
                found=len(data),
            )
        return np.frombuffer(data, np.uint8)

    def mapped_payload(self, bundle: int, offset: int, size: int) -> np.ndarray:
        """Payloads in a bundle, mapped: not read yet. uint8[size]."""
        if bundle not in self._maps:
            self._maps[bundle] = mapped(self._bundle_file(bundle), self.index.bundles[bundle])
        return self._maps[bundle][offset : offset + size]


def _no_metadata(path: Path) -> InputError:
    return InputError(
        "not a compressed checkpoint",
        file=path,
        expected=f"an Orbax checkpoint with {KEY!r} in its custom metadata",
        found="none",
        hint="jentropy compress makes one",
    )


def bundle_name(number: int) -> str:
    """Name of a bundle's folder."""
    return f"bundles.{number:05d}"


def _declared_size(folder: Path) -> int:
    """Bytes of an array of the layout that FORMAT.md describes: one dimension, one chunk."""
    file = folder / "zarr.json"
    if not os.path.lexists(file):
        raise CorruptError("array of the checkpoint", file=folder, expected="it", found="none")
    text = faults.read_file(file)
    return parse(ARRAY, text, file, "array of the checkpoint")
