"""A compressed checkpoint back into its original files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers import trees
from jentropy.errors import InputError

from . import array_store, orbax
from .decoding import file_bytes, read_entries, read_entry, whole_bytes
from .index import StoreEntry
from .loading import load
from .orbax_source import owned_files
from .progress import Progress, expect
from .staging import Replaces, destination_errors, put_in_place, staged
from .store import Store, is_orbax_checkpoint


def decompress_checkpoint(
    path: str | Path,
    out: str | Path,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes the original files, byte for byte.

    An Orbax checkpoint comes back as one to Orbax: its arrays written anew as they were laid out,
    every other file byte for byte. A checkpoint that was made of a pytree becomes an Orbax
    checkpoint of it.

    Args:
      path: a compressed checkpoint.
      out: the directory that will hold the files; it appears whole or not at all.
      progress: called with the bytes done since the last call; see `progress.Progress`.
      overwrite: whether a directory that holds nothing but such files is replaced.

    Raises:
      InputError: a damaged checkpoint.
      DestinationError: `out` exists or cannot be written.
    """
    store, target = Store(Path(path)), Path(out)
    if target.resolve().is_relative_to(store.path.resolve()):
        raise InputError("destination lies inside the compressed checkpoint", file=target)
    if overwrite and store.path.resolve().is_relative_to(target.resolve()):
        raise InputError("compressed checkpoint lies inside the destination", file=store.path)
    replaces = _others(store) if overwrite else None
    if not store.index.files and not store.index.stores:
        orbax.save_tree(target, trees.decompress(load(path)), replaces=replaces)
        return
    expect(progress, whole_bytes(store))
    with (
        staged(target, "decompress", replaces=replaces) as stage,
        destination_errors(target),
    ):
        for item in store.index.stores:
            write_item(store, item, stage / "out" / item.path, progress)
        for name, parts in file_bytes(store):
            file = stage / "out" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                for part in parts:
                    stream.write(part.data)
                    if progress:
                        progress(part.size)
        put_in_place(stage / "out", target, replace=overwrite)


def write_item(
    store: Store, item: StoreEntry, folder: Path, progress: Progress | None = None
) -> None:
    """Writes a store of an Orbax checkpoint as it was."""

    def arrays() -> Iterator[tuple[str, Mapping[str, Any], np.ndarray]]:
        entries = [store.index.tensors[number] for number, _, _ in item.arrays]
        decoded = read_entries(store, entries)
        for (_, prefix, metadata), values in zip(item.arrays, decoded, strict=True):
            yield prefix, metadata, values
            if progress:
                progress(values.nbytes)

    def others() -> Iterator[tuple[bytes, bytes]]:
        for key, blob in item.others:
            value = read_entry(store, store.index.blobs[blob]).tobytes()
            yield key.encode("utf-8", "surrogateescape"), value
            if progress:
                progress(len(value))

    array_store.write_store(folder, arrays(), others(), ocdbt=item.ocdbt)


def _others(store: Store) -> Replaces:
    """Says what a directory holds that the checkpoint does not give back."""
    ours, stores = {f.path for f in store.index.files}, store.index.stores

    def found(path: Path) -> str:
        if not ours and not stores:
            return "" if is_orbax_checkpoint(path) else "no Orbax checkpoint"
        if not path.is_dir():
            return "a file"
        inside = [p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()]
        own = set(ours)
        for item in stores:
            prefixes = [prefix for _, prefix, _ in item.arrays]
            own |= owned_files(inside, item.path, prefixes, ocdbt=item.ocdbt)
        return next((name for name in inside if name not in own), "")

    return found
