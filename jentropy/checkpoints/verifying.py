"""Checks of compressed checkpoints: checksums, decoding, and comparison with the source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jentropy.errors import CheckError, CorruptError

from . import orbax, sources, structure
from .array_store import ZarrArray
from .decoding import file_bytes, read_entries, read_entry, whole_bytes
from .hub import resolve
from .index import Filler
from .orbax_source import ItemStore, OrbaxSource, is_orbax, read_orbax
from .progress import Progress, expect
from .store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a verification went through."""

    tensors: int
    files: int
    chunks: int
    bytes: int  # decoded
    compared: bool  # with the source


def verify(
    path: str | Path,
    against: str | Path | None = None,
    progress: Progress | None = None,
    *,
    step: int | None = None,
) -> Verified:
    """Checks every checksum of a compressed checkpoint and decodes all of it.

    Args:
      path: a compressed checkpoint.
      against: the source; every byte of its files is compared, and every array that Orbax wrote.
      progress: called with the bytes done since the last call; see `progress.Progress`.
      step: the only step of the source that was compressed.

    Raises:
      ChecksumError, CorruptError: damaged data, by file and tensor.
      CheckError: sound data that differ from the source, by file.
    """
    store = Store(Path(path))
    index = store.index
    source = None if against is None else resolve(against)
    expect(progress, whole_bytes(store))
    if not index.files and not index.stores:
        original = None if source is None else read_orbax(source, step)
        total = _verify_tree(store, original, progress)
    else:
        root, stores = None, None
        if source is not None:
            root, stores = _same_files(store, source, step)
        total = _verify_stores(store, stores, progress)
        for name, parts in file_bytes(store):
            total += _compare(parts, None if root is None else root / name, progress)
    _check_arrays(store)
    everything = (*index.tensors, *index.blobs)
    return Verified(
        tensors=_arrays(store) if index.files or index.stores else len(index.tensors),
        files=len(index.files),
        chunks=sum(len(entry.places) for entry in everything),
        bytes=total,
        compared=against is not None,
    )


def _arrays(store: Store) -> int:
    """Tensors in the files and stores, as these have them."""
    parts = (part for f in store.index.files for part in f.parts or ())
    inside = sum(not isinstance(part, Filler) for part in parts)
    return inside + sum(len(item.arrays) for item in store.index.stores)


def _same_files(store: Store, source: Path, step: int | None) -> tuple[Path, dict[str, ItemStore]]:
    """The source's root and its stores by path.

    Raises:
      CheckError: not the same files, or stores of the same arrays.
    """
    stores: tuple[ItemStore, ...] = ()
    if step is not None or (store.index.stores and is_orbax(source)):
        found = read_orbax(source, step)
        root, files, stores = found.root, found.kept, found.stores
    else:
        root, files = sources.files_of(source)
    ours, theirs = {f.path for f in store.index.files}, set(files)
    for item in store.index.stores:
        ours |= {f"{item.path}/{prefix}" for _, prefix, _ in item.arrays}
        ours |= {f"{item.path}/{key}" for key, _ in item.others}
    for own in stores:
        theirs |= {f"{own.path}/{array.prefix}" for array in own.arrays}
        theirs |= {f"{own.path}/{key.decode('utf-8', 'surrogateescape')}" for key in own.others}
    for name in sorted(ours ^ theirs):
        where = "only in the compressed checkpoint" if name in ours else "only in the source"
        raise CheckError(f"{root / name.strip('/')}: {where}")
    return root, {own.path: own for own in stores}


def _verify_stores(
    store: Store, theirs: dict[str, ItemStore] | None, progress: Progress | None
) -> int:
    """Decodes the arrays of an Orbax checkpoint and compares them; bytes gone through."""
    total = 0
    for item in store.index.stores:
        originals = {a.prefix: a for a in theirs[item.path].arrays} if theirs else {}
        entries = [store.index.tensors[number] for number, _, _ in item.arrays]
        decoded = read_entries(store, entries)
        for (_, prefix, metadata), entry, values in zip(item.arrays, entries, decoded, strict=True):
            total += values.nbytes
            original = originals.get(prefix)
            if original is not None and not _same_values(values, original.read()):
                raise CheckError(f"{original.file}: tensor {entry.name!r} differs")
            if original is not None and original.metadata != metadata:
                raise CheckError(f"{original.file}: tensor {entry.name!r} is laid out otherwise")
            if progress:
                progress(values.nbytes)
        for key, blob in item.others:
            value = read_entry(store, store.index.blobs[blob])
            total += value.nbytes
            others = theirs[item.path].others if theirs else {}
            expected = others.get(key.encode("utf-8", "surrogateescape"))
            if expected is not None and expected != value.tobytes():
                raise CheckError(f"{item.path}: value of {key!r} differs")
            if progress:
                progress(value.nbytes)
    return total


def _verify_tree(store: Store, source: OrbaxSource | None, progress: Progress | None) -> int:
    """Decodes the leaves of a pytree and compares them with an Orbax checkpoint of it."""
    total, entries = 0, list(store.index.tensors)
    original: dict[str, Any] = {}
    if source is not None:
        original = dict(source.named()) | dict(structure.others(source.tree))
        ours = {entry.name for entry in entries} | dict(structure.others(store.index.tree)).keys()
        for name in sorted(original.keys() ^ ours):
            raise CheckError(f"{source.root}: tensor {name!r} is in one of the two only")
        for name, value in structure.others(store.index.tree):
            if not _same_python(value, original[name]):
                raise CheckError(f"{source.root}: {name!r} differs")
    for entry, values in zip(entries, read_entries(store, entries), strict=True):
        total += values.nbytes
        if source is not None:
            theirs = original[entry.name]
            if not isinstance(theirs, ZarrArray) or not _same_values(values, theirs.read()):
                raise CheckError(f"{source.root}: tensor {entry.name!r} differs")
        if progress:
            progress(values.nbytes)
    return total


def _same_python(value: Any, theirs: Any) -> bool:
    """Whether a number or a text of Python's is what Orbax stored."""
    if isinstance(theirs, ZarrArray):
        return _same_values(np.asarray(value), theirs.read())
    return type(value) is type(theirs) and value == theirs


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
