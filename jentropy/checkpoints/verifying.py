"""Checks of compressed checkpoints: checksums, decoding, and comparison with the source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np

from jentropy.containers import trees
from jentropy.errors import CheckError, CorruptError, InputError

from . import orbax, sources, structure
from .decoding import file_bytes, read_entries, whole_bytes
from .hub import resolve
from .index import Entry, Filler
from .progress import Progress, expect
from .store import Store, is_orbax_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a verification went through."""

    tensors: int
    files: int
    chunks: int
    bytes: int  # decoded
    compared: bool  # with the source


def verify(
    path: str | Path, against: str | Path | None = None, progress: Progress | None = None
) -> Verified:
    """Checks every checksum of a compressed checkpoint and decodes all of it.

    Args:
      path: a compressed checkpoint.
      against: the source; every byte is compared with it.
      progress: called with the bytes done since the last call; see `progress.Progress`.

    Raises:
      ChecksumError, CorruptError: damaged data, by file and tensor.
      CheckError: sound data that differ from the source, by file.
    """
    store = Store(Path(path))
    index = store.index
    total = 0
    expect(progress, whole_bytes(store))
    if index.files:
        root = None
        if against is not None:
            root, files = sources.files_of(resolve(against))
            _same_names(store, root, files)
        for name, parts in file_bytes(store):
            total += _compare(parts, None if root is None else root / name, progress)
    else:
        entries = list(index.tensors)
        structure.rebuild(index.tree, entries, store.array_path("index"))
        original = None if against is None else _tree_by_name(against)
        if original is not None:
            _same_tree_names(original, entries, against)
        for entry, values in zip(entries, read_entries(store, entries), strict=True):
            total += values.nbytes
            if original is not None and not _same_values(values, original[entry.name]):
                raise CheckError(f"{against}: tensor {entry.name!r} differs")
            if progress:
                progress(values.nbytes)
    _check_arrays(store)
    everything = (*index.tensors, *index.blobs)
    return Verified(
        tensors=len(index.tensors) if not index.files else _arrays(store),
        files=len(index.files),
        chunks=sum(len(entry.chunks) for entry in everything),
        bytes=total,
        compared=against is not None,
    )


def _arrays(store: Store) -> int:
    """Tensors in the files, as these have them."""
    parts = (part for f in store.index.files for part in f.parts or ())
    return sum(not isinstance(part, Filler) for part in parts)


def _same_names(store: Store, root: Path, files: Iterable[str]) -> None:
    ours = {f.path for f in store.index.files}
    for name in sorted(ours ^ set(files)):
        where = "only in the compressed checkpoint" if name in ours else "only in the source"
        raise CheckError(f"{root / name}: {where}")


def _compare(parts: Iterable[np.ndarray], original: Path | None, progress: Progress | None) -> int:
    """Decodes a file and compares it; bytes gone through."""
    at = 0
    stream: BinaryIO | None = None if original is None else original.open("rb")
    try:
        for part in parts:
            if stream is not None:
                expected = np.frombuffer(stream.read(part.size), np.uint8)
                if expected.size != part.size or not np.array_equal(expected, part):
                    same = expected == part[: expected.size]
                    first = at + int(np.argmin(same)) if not same.all() else at + same.size
                    raise CheckError(f"{original}: differs from byte {first} on")
            at += part.size
            if progress:
                progress(part.size)
        if stream is not None and stream.read(1):
            raise CheckError(f"{original}: is longer than the {at} bytes that were compressed")
    finally:
        if stream is not None:
            stream.close()
    return at


def _tree_by_name(against: str | Path) -> dict[str, np.ndarray]:
    source = resolve(against)
    if not is_orbax_checkpoint(source):
        raise InputError("source", file=source, expected="an Orbax checkpoint", found="none")
    leaves = jax.tree_util.tree_flatten_with_path(orbax.load_tree(source))[0]
    return {trees.leaf_name(path): np.asarray(leaf) for path, leaf in leaves}


def _same_tree_names(
    original: dict[str, np.ndarray], entries: list[Entry], against: str | Path | None
) -> None:
    for name in sorted(original.keys() ^ {entry.name for entry in entries}):
        raise CheckError(f"{against}: tensor {name!r} is in one of the two only")


def _same_values(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _check_arrays(store: Store) -> None:
    """Raises CorruptError unless Orbax finds the arrays that the index tells of."""
    found = orbax.shapes(store.path)
    expected = {f"bundles.{i:05d}": (size,) for i, size in enumerate(store.index.bundles)}
    for name in sorted(expected.keys() | found.keys() - {"index"}):
        if expected.get(name) != found.get(name):
            raise CorruptError(
                f"array {name} in Orbax's metadata",
                file=store.path,
                expected=expected.get(name, "none"),
                found=found.get(name, "none"),
            )
