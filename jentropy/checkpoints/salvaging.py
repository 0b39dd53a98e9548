"""What is sound of a damaged compressed checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.errors import InputError

from . import durable, faults, frames, item_tree, safetensors, tree_writing
from .bases import Bases, expect_base, with_bases
from .decoding import damage_of, entries_of, file_bytes, read_chunks, read_entries, sections_of
from .entries import Entry, FileEntry
from .mirrors import destination, located
from .progress import Progress
from .restoring import write_store
from .staging import OUT, expect_free, put_in_place, staged
from .store import Store

DAMAGED = ".damaged"  # ends the names of files with zeros in the places of damaged bytes
PURPOSE = "salvage"
ALIGNMENT = 8  # of a safetensors header


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """What a salvage found.

    Attributes:
      damage: all of it, by file and tensor.
      whole: files that came back byte for byte.
      partial: files that lack tensors, or have zeros for what is damaged.

    Example:
      >>> Salvaged(damage=(), whole=("config.json",), partial=()).whole
      ('config.json',)
    """

    damage: tuple[InputError, ...]
    whole: tuple[str, ...]
    partial: tuple[str, ...]


@faults.told
def salvage(
    path: str | Path, out: str | Path, progress: Progress | None = None, *, base: Bases = None
) -> Salvaged:
    """Writes what is sound of a compressed checkpoint, damaged or not.

    Of a safetensors file the tensors that are sound come back, with a header of their own if any is
    not. Any other damaged file has zeros in the places of what is lost, and a name that ends in
    `.damaged`. Arrays of Orbax that are damaged are left out, also of its metadata. A pytree
    becomes an Orbax checkpoint with None for damaged leaves.

    Args:
      path: a compressed checkpoint, of which a copy of the index can be read.
      out: the directory that will hold the files; it appears whole or not at all.
      progress: called with the bytes done since the last call; see `progress.Progress`.
      base: see `load`; of a damaged one, what is told by its sound tensors comes back.

    Returns:
      What was found to be damaged, and what came back.

    Raises:
      InputError: no compressed checkpoint, or none whose index can be read.
      DestinationError: `out` exists or cannot be written.

    Example:
      >>> import tempfile, jentropy
      >>> from pathlib import Path
      >>> header = b'{"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'
      >>> with tempfile.TemporaryDirectory() as name:
      ...     folder = Path(name)
      ...     source = folder / "model.safetensors"
      ...     _ = source.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
      ...     jentropy.compress_checkpoint(source, folder / "packed")
      ...     (folder / "packed" / "commit_success.txt").unlink()
      ...     found = jentropy.salvage(folder / "packed", folder / "out")
      >>> len(found.damage), found.whole
      (1, ('model.safetensors',))
    """
    damage: list[InputError] = []
    store, target = with_bases(located(path), base, damage), destination(out)
    expect_base(store)
    if target.resolve().is_relative_to(store.path.resolve()):
        raise InputError("destination lies inside the compressed checkpoint", file=target)
    expect_free(target, PURPOSE)  # before all is read
    index, lost = store.index, set[int]()
    for entry, _, error in damage_of(store, (*index.tensors, *index.blobs), bases=True):
        if id(entry) not in lost:
            damage.append(error)
        lost.add(id(entry))
    damage += frames.faults(store, {error.file for error in damage})
    if index.is_pytree:
        without = [n for n, entry in enumerate(index.tensors) if id(entry) in lost]
        with staged(target, PURPOSE) as stage, faults.writing(target):
            made = tree_writing.write(store, stage, target, progress, without)
            put_in_place(made, target, replace=False)
        return Salvaged(damage=tuple(damage), whole=(), partial=())
    whole: list[str] = []
    partial: list[str] = []
    with staged(target, PURPOSE) as stage, faults.writing(target):
        made = stage / OUT
        made.mkdir()
        for item in index.stores:
            sound = [one for one in item.arrays if id(index.tensors[one[0]]) not in lost]
            others = [one for one in item.others if id(index.blobs[one[1]]) not in lost]
            left = replace(item, arrays=tuple(sound), others=tuple(others))
            write_store(store, left, made / item.path, progress, sound=())
        for file in index.files:
            name, parts = _salvaged(store, file, lost, progress)
            gone = _gone(store, file, lost)
            if gone and not _lost(store, file, lost):
                parts = _without(gone, parts)
            target_file = made / name
            target_file.parent.mkdir(parents=True, exist_ok=True)
            with durable.opened(target_file) as stream:
                stream.writelines(part.data for part in parts)
                durable.close(stream)
            is_whole = not (gone or _lost(store, file, lost))
            (whole if is_whole else partial).append(name)
        durable.sync_tree(made)
        put_in_place(made, target, replace=False)
    return Salvaged(damage=tuple(damage), whole=tuple(whole), partial=tuple(partial))


def _lost(store: Store, file: FileEntry, lost: set[int]) -> bool:
    sections = sections_of(file)
    return any(id(entry) in lost for section in sections for entry in entries_of(store, section))


def _gone(store: Store, file: FileEntry, lost: set[int]) -> set[str]:
    """Names of the damaged arrays that a file is Orbax's metadata of."""
    folder, _, name = file.path.rpartition("/")
    items = (item for item in store.index.stores if item.path == folder)
    arrays = (array for item in items for array in item.arrays if name == item_tree.METADATA)
    tensors = store.index.tensors
    return {prefix.removesuffix("/") for n, prefix, _ in arrays if id(tensors[n]) in lost}


def _without(gone: set[str], parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Orbax's metadata of an item without some arrays."""
    told = json.loads(b"".join(part.tobytes() for part in parts))
    told["tree_metadata"] = {
        key: leaf
        for key, leaf in told["tree_metadata"].items()
        if ".".join(str(step["key"]) for step in leaf["key_metadata"]) not in gone
    }
    yield np.frombuffer(json.dumps(told).encode(), np.uint8)


def _salvaged(
    store: Store, file: FileEntry, lost: set[int], progress: Progress | None
) -> tuple[str, Iterator[np.ndarray]]:
    """The name of a file and its bytes, as far as they are sound."""
    is_lost = _lost(store, file, lost)
    if is_lost and safetensors.is_named(file.path) and file.parts:
        return file.path, _of_tensors(store, file, lost, progress)
    damaged = (lambda _: None) if is_lost else None
    _, parts = next(file_bytes(store, progress, damaged=damaged, files=[file]))
    return file.path + DAMAGED * is_lost, parts


def _of_tensors(
    store: Store, file: FileEntry, lost: set[int], progress: Progress | None
) -> Iterator[np.ndarray]:
    """A safetensors file of the tensors that are sound."""
    entries = [store.index.tensors[n] for n in file.parts or () if isinstance(n, int)]
    sound = [entry for entry in entries if id(entry) not in lost]
    told = _header(store, file, lost)
    header: dict[str, Any] = {}
    if safetensors.METADATA in told:
        header[safetensors.METADATA] = told[safetensors.METADATA]
    at = 0
    for entry in sound:
        size = entry.header.raw_bytes
        described = told.get(entry.name) or _described(entry)
        header[entry.name] = {**described, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield np.frombuffer(len(text).to_bytes(safetensors.LENGTH_BYTES, "little") + text, np.uint8)
    for chunks in read_chunks(store, sound, progress):
        yield from (np.ascontiguousarray(codes).view(np.uint8) for codes in chunks)


def _header(store: Store, file: FileEntry, lost: set[int]) -> dict[str, Any]:
    """What the file's own header says; nothing if that is lost."""
    blob = store.index.blobs[file.blob]
    if id(blob) in lost:
        return {}
    (data,) = read_entries(store, [blob])
    text = data[safetensors.LENGTH_BYTES :].tobytes()
    return safetensors.parse_header(store.path / file.path, text)


def _described(entry: Entry) -> dict[str, Any]:
    """What a header says of a tensor, as far as the index knows."""
    names: Iterable[str] = safetensors.DTYPES
    dtypes = (name for name in names if safetensors.DTYPES[name][1].name == entry.dtype)
    return {"dtype": next(dtypes, "U8"), "shape": list(entry.shape)}
