"""Checks of compressed checkpoints: checksums, decoding, and comparison with the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers import memory
from jentropy.containers.tensor import dtype_named
from jentropy.errors import CheckError, InputError, place
from jentropy.formats import codes_of

from . import faults, frames, sources, structure
from .bases import Bases, expect_base, with_bases
from .contents import StoredArray, in_memory
from .decoding import all_bytes, file_bytes, read_chunks
from .entries import Entry, Filler
from .faults import reading
from .mapping import File
from .mirrors import located, resolve
from .orbax_source import ItemStore, OrbaxSource, is_orbax, read_orbax
from .progress import Progress, expect
from .smaller_chunks import divided
from .store import Store

Original = tuple[Entry, StoredArray | None]  # an entry, and what it is compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a verification went through.

    Example:
      >>> Verified(tensors=1, files=1, chunks=1, bytes=9, compared=True).compared
      True
    """

    tensors: int
    files: int
    chunks: int
    bytes: int  # decoded
    compared: bool  # with the source


@faults.told
def verify(
    path: str | Path,
    against: str | Path | None = None,
    progress: Progress | None = None,
    *,
    step: int | None = None,
    base: Bases = None,
) -> Verified:
    """Checks every byte of a compressed checkpoint's files and decodes all of it.

    Args:
      path: a compressed checkpoint, or its URL.
      against: the source; every byte of its files is compared, and every array that Orbax wrote.
      progress: called with the bytes done since the last call; see `progress.Progress`.
      step: the only step of the source that was compressed.
      base: see `load`; its own files are not gone through.

    Raises:
      InputError: damaged data, by file and tensor: the first of all that is damaged, which its
        `others` are (ChecksumError, CorruptError, TruncatedError).
      CheckError: sound data that differ from the source, by file.

    Returns:
      What was gone through.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jentropy.save(f"{folder}/t", {"w": np.arange(3, dtype=np.int8)})
      ...     result = jentropy.verify(f"{folder}/t")
      >>> result.tensors, result.bytes, result.compared
      (1, 3, False)
    """
    found: list[InputError] = []
    store = with_bases(located(path), base, found)
    expect_base(store)
    index, source = store.index, None if against is None else resolve(against)
    expect(progress, all_bytes(store))
    memory.expect(min(memory.WORKING, all_bytes(store)), "verifying")
    files: dict[str, Path] = {}
    if index.is_pytree:
        originals = list(of_tree(store, None if source is None else read_orbax(source, step)))
    else:
        stores: dict[str, ItemStore] = {}
        if source is not None:
            root, stores = _same_files(store, source, step)
            files = {f.path: root / f.path for f in index.files}
        originals = list(_of_stores(store, stores))
    decoded = read_chunks(store, (entry for entry, _ in originals), progress, found.append)
    total, differs = 0, list[CheckError]()
    for (entry, original), chunks in zip(originals, decoded, strict=True):
        before = len(found)
        total += entry.header.raw_bytes
        same = _same_chunks(entry, chunks, None if original is None else original.read())
        if not same and len(found) == before:
            file = store.path if original is None else original.file
            differs.append(CheckError(f"{place(file)}: tensor {entry.name!r} differs"))
    for name, parts in file_bytes(store, progress, damaged=found.append):
        before = len(found)
        error, size = _compare(parts, files.get(name))
        total += size
        differs += [error] if error and len(found) == before else []
    if damage := [*_distinct(found), *frames.faults(store, {error.file for error in found})]:
        raise damage[0].among(damage[1:])
    for fault in frames.of_orbax(store):
        raise fault
    if differs:
        raise differs[0]
    inside = [part for f in index.files for part in f.parts or () if not isinstance(part, Filler)]
    return Verified(
        tensors=len(inside) + sum(len(item.arrays) for item in index.stores)
        if index.files or index.stores
        else len(index.tensors),
        files=len(index.files),
        chunks=sum(len(entry.places) for entry in (*index.tensors, *index.blobs)),
        bytes=total,
        compared=against is not None,
    )


def _distinct(errors: Iterable[InputError]) -> list[InputError]:
    """Of the errors of one tensor in one file the first."""
    first: dict[tuple[object, str | None], InputError] = {}
    for number, error in enumerate(errors):
        first.setdefault((error.file, error.tensor or str(number)), error)
    return list(first.values())


def _same_files(store: Store, source: Path, step: int | None) -> tuple[Path, dict[str, ItemStore]]:
    """The source's root and its stores by path.

    Raises:
      CheckError: not the same files, or stores of the same arrays.
    """
    stores: tuple[ItemStore, ...] = ()
    if step is not None or (store.index.stores and is_orbax(source)):
        original = read_orbax(source, step)
        root, files, stores = original.root, original.kept, original.stores
    else:
        root, files = sources.files_of(source)
    ours, theirs = {f.path for f in store.index.files}, set(files)
    for item in store.index.stores:
        ours |= _keys(item.path, [prefix for _, prefix, _ in item.arrays], dict(item.others))
    for their in stores:
        theirs |= _keys(their.path, [array.prefix for array in their.arrays], their.others)
    for name in sorted(ours ^ theirs):
        where = "only in the compressed checkpoint" if name in ours else "only in the source"
        raise CheckError(f"{place(root / name.strip('/'))}: {where}")
    return root, {their.path: their for their in stores}


def _keys(path: str, prefixes: Iterable[str], others: Iterable[str]) -> set[str]:
    """What a store holds, as paths."""
    return {f"{path}/{key}" for key in (*prefixes, *others)}


def _of_stores(store: Store, theirs: Mapping[str, ItemStore]) -> Iterator[Original]:
    """What the stores of an Orbax checkpoint hold, and what the source's hold, if it is given.

    Args:
      theirs: the source's stores by path.

    Raises:
      CheckError: an array that is laid out otherwise.
    """
    index = store.index
    for item in index.stores:
        their = theirs.get(item.path)
        arrays = {array.prefix: array for array in their.arrays} if their else {}
        for number, prefix, metadata in item.arrays:
            entry, original = index.tensors[number], arrays.get(prefix)
            if original is not None and original.metadata != metadata:
                smaller = divided(metadata, dtype_named(entry.dtype).itemsize)
                if original.metadata != smaller:  # as they are when they come back
                    raise CheckError(
                        f"{place(original.array.file)}: tensor {entry.name!r} is laid out otherwise"
                    )
            yield entry, None if original is None else original.array
        for key, blob in item.others:
            value = None if their is None else np.frombuffer(their.others[key], np.uint8)
            yield index.blobs[blob], None if value is None else in_memory(key, value, store.path)


def of_tree(store: Store, source: OrbaxSource | None) -> Iterator[Original]:
    """The leaves of a pytree and of an Orbax checkpoint of it, if it is given.

    Raises:
      CheckError: not the same leaves, a number or a text that differs.
    """
    index = store.index
    if source is None:
        yield from ((entry, None) for entry in index.tensors)
        return
    ours = {entry.name: entry for entry in index.tensors} | dict(structure.others(index.tree))
    theirs = dict(source.named()) | dict(structure.others(source.tree))
    for name in sorted(ours.keys() ^ theirs.keys()):
        raise CheckError(f"{place(source.root)}: tensor {name!r} is in one of the two only")
    for name, value in ours.items():
        their = theirs[name]
        if isinstance(value, Entry) and isinstance(their, StoredArray):
            yield value, their
        elif not _same_python(value, their):
            raise CheckError(f"{place(source.root)}: {name!r} differs")


def _same_python(value: Any, theirs: Any) -> bool:
    """Whether a number or a text of Python's is what Orbax stored."""
    if isinstance(theirs, StoredArray):
        return _same(np.asarray(value), theirs.read())
    return type(value) is type(theirs) and value == theirs


def _same_chunks(entry: Entry, chunks: Iterable[np.ndarray], values: np.ndarray | None) -> bool:
    """Decodes an entry, and says whether it is what an array holds, if there is one."""
    header, same = entry.header, True
    if values is not None:
        same = values.dtype.name == header.dtype and values.shape == header.shape
    flat = codes_of(values).reshape(-1) if same and values is not None else None
    for span, codes in zip(header.spans(), chunks, strict=True):
        if flat is not None:
            same &= codes.tobytes() == flat[span.start : span.start + span.size].tobytes()
    return same


def _compare(parts: Iterable[np.ndarray], original: Path | None) -> tuple[CheckError | None, int]:
    """Decodes a file, and compares it if there is an original; how it differs, and its bytes."""
    if original is None:
        return None, sum(part.size for part in parts)
    at, error, file = 0, None, File(original)

    def read(size: int) -> np.ndarray:
        with reading(original):
            return np.frombuffer(file.read(at, size), np.uint8)

    for part in parts:
        if error is None:
            expected = read(part.size)
            if not np.array_equal(expected, part):
                same = [*(expected == part[: expected.size]), False]
                what = f"differs from byte {at + same.index(False)} on"
                error = CheckError(f"{place(original)}: {what}")
        at += part.size
    if error is None and read(1).size:
        what = f"is longer than the {at} bytes that were compressed"
        error = CheckError(f"{place(original)}: {what}")
    return error, at


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
