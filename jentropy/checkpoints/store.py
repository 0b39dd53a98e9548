"""A compressed checkpoint on disk: an Orbax checkpoint of plain uint8 arrays.

    {"bundles": {"00000": uint8[n0], "00001": uint8[n1], ...}, "index": uint8[m]}

A *bundle* is the payloads of many chunks one after another, so that thousands of small tensors are
one array. Orbax checks none of its data: the index has a checksum for every chunk, and the
checkpoint's custom metadata has the index's. Arrays are stored without OCDBT and uncompressed
(they are entropy coded already), so every array is a folder of its own with the bytes as they are.

Writing stages the bundles in a folder beside the destination first, with a journal of what is in
them; work that was cut off goes on from there, and the destination appears whole or not at all.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from jentropy.containers.tensor import checksum
from jentropy.errors import (
    ChecksumError,
    CorruptError,
    DestinationError,
    InputError,
    UnsupportedError,
)

from . import index as index_lib
from .index import KEY, ChunkRef

BUNDLE_BYTES = 1 << 26  # what a writer holds in memory; more would only save a few files
METADATA_FILE = "_CHECKPOINT_METADATA"  # Orbax's; holds the custom metadata
ARRAYS = "state"  # Orbax's folder of the arrays, when they were saved piece by piece


@contextmanager
def destination_errors(path: Path) -> Iterator[None]:
    """Turns what the file system says about writing `path` into one DestinationError."""
    try:
        yield
    except OSError as error:
        raise DestinationError(_reason(error), file=path) from error
    except ValueError as error:  # tensorstore reports a full disk so
        if "RESOURCE_EXHAUSTED" in str(error) or os.strerror(errno.ENOSPC) in str(error):
            raise DestinationError(os.strerror(errno.ENOSPC), file=path) from error
        raise


def _reason(error: OSError) -> str:
    return f"cannot write: {error.strerror or error}"


def refuse_existing(path: Path) -> None:
    """Raises DestinationError if something is there."""
    if path.exists() or path.is_symlink():
        raise DestinationError(
            "destination exists", file=path, expected="a path that is free", found="something"
        )


class Writer:
    """Writes a compressed checkpoint.

    Args:
      path: where it will appear.
      fingerprint: says what is being written; staged work with the same fingerprint is taken up,
        any other is thrown away. None: no work is taken up.

    Attributes:
      journal: what earlier, unfinished work recorded, in order.
    """

    def __init__(self, path: Path, fingerprint: str | None = None):
        refuse_existing(path)
        self.path = path
        self.stage = path.parent / f".{path.name}.jentropy-partial"
        self.bundles: list[int] = []
        self.journal: list[Any] = []
        self._records: list[Any] = []
        self._parts: list[np.ndarray] = []
        self._held = 0
        with destination_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (fingerprint and self._take_up(fingerprint)):
                shutil.rmtree(self.stage, ignore_errors=True)
                self.stage.mkdir()
                self._journal_file.write_text(json.dumps({"fingerprint": fingerprint}) + "\n")

    @property
    def _journal_file(self) -> Path:
        return self.stage / "journal.jsonl"

    def _bundle_file(self, number: int) -> Path:
        return self.stage / f"{number:05d}"

    def _take_up(self, fingerprint: str) -> bool:
        if not self._journal_file.is_file():
            return False
        lines = self._journal_file.read_text("utf-8").split("\n")
        complete = []
        for line in lines[:-1]:  # what follows the last newline was cut off
            try:
                complete.append(json.loads(line))
            except ValueError:
                break
        if not complete or complete[0] != {"fingerprint": fingerprint}:
            return False
        for number, line in enumerate(complete[1:]):
            file = self._bundle_file(number)
            if not file.is_file() or file.stat().st_size != line["bytes"]:
                break
            if checksum(np.fromfile(file, np.uint8)) != line["hash"]:
                break
            self.bundles.append(line["bytes"])
            self.journal += line["records"]
        kept = complete[: 1 + len(self.bundles)]
        self._journal_file.write_text("".join(json.dumps(line) + "\n" for line in kept))
        return True

    def append(self, payload: np.ndarray) -> tuple[int, int]:
        """Adds a payload; returns its bundle and its offset there."""
        place = len(self.bundles), self._held
        self._parts.append(payload)
        self._held += payload.size
        return place

    def record(self, item: Any) -> None:
        """Notes JSON in the journal, with the payloads added so far."""
        self._records.append(item)
        if self._held >= BUNDLE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Stages the bundle begun."""
        if not self._held:
            return
        bundle = np.concatenate(self._parts)
        with destination_errors(self.path):
            with self._bundle_file(len(self.bundles)).open("wb") as stream:
                stream.write(bundle.data)
                stream.flush()
                os.fsync(stream.fileno())
            line = {"bytes": bundle.size, "hash": checksum(bundle), "records": self._records}
            with self._journal_file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        self.bundles.append(bundle.size)
        self._records, self._parts, self._held = [], [], 0

    def finish(self, index: bytes) -> None:
        """Writes the checkpoint and removes what was staged.

        Args:
          index: `index.document`, made after the last `flush`.
        """
        from orbax.checkpoint import v1 as ocp  # seconds to import, and only writers need it

        text = np.frombuffer(index, np.uint8)
        metadata = {KEY: {"version": index_lib.VERSION, "index_xxh3_64": f"{checksum(text):016x}"}}
        partial = self.path.parent / f"{self.path.name}.partial_save"  # Orbax's name for it
        context = ocp.Context()
        context.array.saving.use_ocdbt = False
        context.array.saving.use_compression = False
        try:
            with destination_errors(self.path), context:
                shutil.rmtree(partial, ignore_errors=True)
                for number in range(len(self.bundles)):
                    bundle = np.fromfile(self._bundle_file(number), np.uint8)
                    ocp.partial.save(self.path.resolve(), {"bundles": {f"{number:05d}": bundle}})
                ocp.partial.save(self.path.resolve(), {"index": text}, custom_metadata=metadata)
                ocp.partial.finalize(self.path.resolve())
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(self.stage, ignore_errors=True)

    def discard(self) -> None:
        """Removes what was staged."""
        shutil.rmtree(self.stage, ignore_errors=True)


@contextmanager
def writing(path: Path, fingerprint: str | None = None) -> Iterator[Writer]:
    """A Writer that leaves nothing behind when it fails.

    Only work that was killed or interrupted (Ctrl-C) stays staged, to be taken up.
    """
    writer = Writer(path, fingerprint)
    try:
        yield writer
    except Exception:
        writer.discard()
        raise


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
        self._bundles: dict[int, Any] = {}
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

    def _open(self, name: str) -> Any:
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
