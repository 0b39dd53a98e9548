"""A compressed checkpoint on disk: an Orbax checkpoint of plain uint8 arrays, opened for reading.

    {"bundles": {"00000": uint8[n0], "00001": uint8[n1], ...}, "index": uint8[m]}

A *bundle* is the payloads of many chunks one after another, so that thousands of small tensors are
one array. Orbax checks none of its data: the index has a checksum for every chunk, and the
checkpoint's custom metadata has the index's. Arrays are stored without OCDBT and uncompressed
(they are entropy coded already), so every array is a folder of its own with the bytes as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from jentropy.containers.tensor import checksum
from jentropy.errors import ChecksumError, CorruptError, InputError, UnsupportedError

from . import index as index_lib
from .index import KEY, ChunkRef

METADATA_FILE = "_CHECKPOINT_METADATA"  # Orbax's; holds the custom metadata
ARRAYS = "state"  # Orbax's folder of the arrays, when they were saved piece by piece


def is_compressed_checkpoint(path: Path) -> bool:
    """Whether a directory is a compressed checkpoint."""
    return _custom_metadata(path) is not None


def is_orbax_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint that Orbax wrote."""
    return any((path / name).exists() for name in (METADATA_FILE, "_METADATA", "orbax.checkpoint"))


def _custom_metadata(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((path / METADATA_FILE).read_bytes())
        found = document["custom_metadata"][KEY]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else {}


class Store:
    """A compressed checkpoint, opened: its index, and payloads on demand.

    Raises:
      InputError: not a compressed checkpoint, another version, a damaged index.
    """

    def __init__(self, path: Path):
        self.path = path
        metadata = _custom_metadata(path)
        if metadata is None:
            raise InputError(
                "not a compressed checkpoint",
                file=path,
                expected=f"an Orbax checkpoint with {KEY!r} in its custom metadata",
                found="none",
            )
        version = metadata.get("version")
        if version != index_lib.VERSION:
            raise UnsupportedError(
                "version of the compressed checkpoint",
                file=path,
                expected=f"{index_lib.VERSION} or lower",
                found=f"{version!r:.40}",
                hint="a newer jentropy wrote it",
            )
        text = np.asarray(_read(self._open("index")))
        found = f"{checksum(text):016x}"
        if found != metadata.get("index_xxh3_64"):
            raise ChecksumError(
                "checksum of the index",
                file=self.array_path("index"),
                expected=metadata.get("index_xxh3_64"),
                found=found,
            )
        self.index = index_lib.from_json(text.tobytes(), self.array_path("index"))
        self._last: tuple[int, np.ndarray] | None = None

    def array_path(self, name: str) -> Path:
        """Folder of an array of the checkpoint."""
        return self.path / ARRAYS / name

    def bundle_path(self, ref: ChunkRef) -> Path:
        """Folder of the bundle that a chunk lies in."""
        return self.array_path(f"bundles.{ref.bundle:05d}")

    def _open(self, name: str) -> tuple[Path, Any]:
        folder = self.array_path(name)
        if not (folder / "zarr.json").is_file():
            raise CorruptError("array of the checkpoint", file=folder, expected="it", found="none")
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder.resolve())}}
        array = _guard(folder, lambda: ts.open(spec, read=True, open=True).result())
        if array.dtype.numpy_dtype != np.uint8 or array.ndim != 1:
            raise CorruptError(
                "array of the checkpoint",
                file=folder,
                expected="one dimension of uint8",
                found=f"{array.ndim} of {array.dtype.name}",
            )
        on_disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        if array.shape[0] > on_disk:  # before it is allocated
            raise CorruptError(
                "array of the checkpoint",
                file=folder,
                expected=f"at most the {on_disk} bytes that are there",
                found=array.shape[0],
            )
        return folder, array

    def payload(self, ref: ChunkRef) -> np.ndarray:
        """The payload of a chunk, unchecked. uint8[ref.chunk.bytes]."""
        if self._last is None or self._last[0] != ref.bundle:
            folder, array = self._open(f"bundles.{ref.bundle:05d}")
            expected = self.index.bundles[ref.bundle]
            if array.shape != (expected,):
                raise CorruptError(
                    "bundle", file=folder, expected=f"{expected} bytes", found=array.shape[0]
                )
            self._last = ref.bundle, np.asarray(_read((folder, array)))
        return self._last[1][ref.offset : ref.offset + ref.chunk.bytes]


def _read(opened: tuple[Path, Any]) -> np.ndarray:
    folder, array = opened
    return _guard(folder, lambda: array.read().result())


def _guard(folder: Path, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except ValueError as error:
        first = str(error).split("\n", 1)[0]
        raise CorruptError(
            f"array of the checkpoint cannot be read: {first:.200}", file=folder
        ) from error
