"""The frame of a compressed checkpoint: all that lies around its payloads.

Orbax writes it of the index and its copy alone. It is completed so that it tells of the bundles,
as if Orbax had written them, and has a hash of every file that is none of theirs; the last file,
which holds those, has one of itself, of its bytes with zeros in the places of that hash's digits.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers.tensor import checksum
from jentropy.errors import ChecksumError, CorruptError, InputError, TruncatedError

from . import orbax, zarr_files
from .faults import read_file, reading
from .index import KEY
from .mapping import File
from .store import ARRAYS, COMMITTED, COPY, HASH, INDEX, METADATA_FILE, Store, bundle_name

FILES, SELF = "files", "self_xxh3_64"
BUNDLES, TREE_FILE = "bundles", "_METADATA"
OWN_HASH = re.compile(rb'(?<="self_xxh3_64": ")[0-9a-f]{16}(?=")')
BLANK = b"0" * 16
COMMIT = "Checkpoint commit was successful"
# Files that a checkpoint of version 1, which has no hashes of them, may have.
OLD = (
    METADATA_FILE,
    COMMITTED,
    "orbax.checkpoint",
    f"{ARRAYS}/{TREE_FILE}",
    f"{ARRAYS}/{INDEX}/{zarr_files.METADATA}",
    f"{ARRAYS}/{INDEX}/{zarr_files.CHUNK}",
)


def _hash(data: bytes) -> str:
    return f"{checksum(np.frombuffer(data, np.uint8)):016x}"


def make(folder: Path, index: bytes, bundles: int, version: int) -> Path:
    """Writes a frame.

    Args:
      folder: where it will lie, alone, under a name of this function's choice.
      index: as it is stored.
      bundles: how many there are.
      version: of the index.

    Returns:
      The frame.
    """
    text = np.frombuffer(index, np.uint8)
    tree = {INDEX: text, COPY: text} if version > 1 else {INDEX: text}
    told = {"version": version, HASH: _hash(index)}
    frame = orbax.save_arrays(folder, tree, custom_metadata={KEY: told})
    if (frame / COMMITTED).exists():  # Orbax has the writer's path in it
        (frame / COMMITTED).write_text(COMMIT)
    _tell_of_bundles(frame, bundles)
    if version > 1:
        _tell_hashes(frame)
    return frame


def _tell_of_bundles(frame: Path, bundles: int) -> None:
    told = json.loads((frame / ARRAYS / TREE_FILE).read_bytes())
    index = told["tree_metadata"][str((INDEX,))]
    key = index["key_metadata"][0]
    named = {}
    for number in range(bundles):
        path = (BUNDLES, bundle_name(number).removeprefix(f"{BUNDLES}."))
        named[str(path)] = {**index, "key_metadata": [{**key, "key": k} for k in path]}
    told["tree_metadata"] = named | told["tree_metadata"]
    (frame / ARRAYS / TREE_FILE).write_text(json.dumps(told), encoding="utf-8")


def _tell_hashes(frame: Path) -> None:
    metadata = json.loads((frame / METADATA_FILE).read_bytes())
    metadata["custom_metadata"][KEY] |= {
        FILES: {n: _hash((frame / n).read_bytes()) for n in _below(frame) if n != METADATA_FILE},
        SELF: BLANK.decode(),
    }
    text = json.dumps(metadata).encode()
    text = OWN_HASH.sub(_hash(text).encode(), text)
    (frame / METADATA_FILE).write_bytes(text)


def _below(folder: Path) -> list[str]:
    """Files below a folder, and folders without any, as sorted relative paths."""
    found = []
    for above, folders, files in os.walk(folder):
        place = Path(above).relative_to(folder)
        found += [(place / name).as_posix() for name in files]
        if not (folders or files):
            found.append(f"{place.as_posix()}/")
    return sorted(found)


def faults(store: Store, known: Collection[object] = ()) -> Iterator[InputError]:
    """All that is wrong with files beside the payloads in them.

    Args:
      known: files of which that is known already.
    """
    told, version = store.metadata.get(FILES), store.index.version
    hashes = told if isinstance(told, dict) else {}
    names = {METADATA_FILE, *hashes} if hashes or version > 1 else {*OLD}
    needed = names if version > 1 else {f"{ARRAYS}/{TREE_FILE}"}
    for number in range(len(store.index.bundles)):
        folder = f"{ARRAYS}/{bundle_name(number)}"
        names |= {f"{folder}/{zarr_files.METADATA}", f"{folder}/{zarr_files.CHUNK}"}
    with reading(store.path):
        found = set(_below(store.path))
    for name in sorted(found - names):
        yield CorruptError(
            "file of the checkpoint", file=store.path / name, expected="none", found="it"
        )
    for name in sorted(needed - found):
        if store.path / name not in known:
            yield _missing(store.path / name)
    for name in sorted(found & {METADATA_FILE, *hashes}):
        if store.path / name not in known:
            yield from _of_hash(store.path / name, hashes.get(name), version)
    for number, size in enumerate(store.index.bundles):
        yield from _of_bundle(store.bundle_path(number), size, known)


def _missing(file: Path) -> InputError:
    return CorruptError("file of the checkpoint", file=file, expected="it", found="none")


def _of_hash(file: Path, expected: Any, version: int) -> Iterator[InputError]:
    """The fault of a file that has not its hash; of the last file its own."""
    try:
        data = read_file(file)
    except InputError as error:
        yield error
        return
    if file.name == METADATA_FILE:
        own = OWN_HASH.search(data)
        if own is None and version == 1:
            return
        expected = own[0].decode() if own else "one of itself"
        data = OWN_HASH.sub(BLANK, data)
    if (found := _hash(data)) != expected:
        yield ChecksumError("checksum of the file", file=file, expected=expected, found=found)


def _of_bundle(folder: Path, size: int, known: Collection[object]) -> Iterator[InputError]:
    """What is wrong with the files of a bundle, but for its payloads."""
    told, chunk = folder / zarr_files.METADATA, folder / zarr_files.CHUNK
    try:
        same = read_file(told) == zarr_files.metadata(size)
        if not same and told not in known:
            expected = f"those of {size} bytes"
            yield CorruptError("metadata of a bundle", file=told, expected=expected, found="others")
    except InputError as error:
        yield error
    try:
        file = File(chunk)
        with reading(chunk):
            end = chunk.stat().st_size
            tail = file.read(min(size, end), zarr_files.INDEX_BYTES + 1)
    except InputError as error:
        if folder not in known:
            yield error
        return
    wanted = zarr_files.shard_index(size)
    if end < size:
        if folder not in known:  # as the file of chunks
            what = "array of the checkpoint"
            yield TruncatedError(what, file=chunk, expected=f"{size} bytes", found=end)
    elif tail != wanted:
        found = tail.hex() if len(tail) == len(wanted) else f"{end - size} bytes"
        what = "zarr's index behind a bundle"
        yield CorruptError(what, file=chunk, expected=wanted.hex(), found=found)


def of_orbax(store: Store) -> Iterator[InputError]:
    """Arrays that Orbax does not find as the index tells of them."""
    try:
        shapes = orbax.shapes(store.path)
    except InputError as error:
        yield error
        return
    expected = {f"bundles.{i:05d}": (size,) for i, size in enumerate(store.index.bundles)}
    for name in sorted(expected.keys() | shapes.keys() - {INDEX, COPY}):
        if expected.get(name) != shapes.get(name):
            yield CorruptError(
                f"array {name} in Orbax's metadata",
                file=store.path,
                expected=expected.get(name, "none"),
                found=shapes.get(name, "none"),
            )
