"""A compressed checkpoint back into its original files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers import trees
from jentropy.errors import InputError

from . import array_store, orbax
from .compressed import file_bytes, read_entries, read_entry
from .compressing import Progress
from .index import StoreEntry
from .loading import load
from .staging import destination_errors, staged
from .store import Store


def decompress_checkpoint(
    path: str | Path, out: str | Path, progress: Progress | None = None
) -> None:
    """Writes the original files, byte for byte.

    An Orbax checkpoint comes back as one to Orbax: its arrays written anew as they were laid out,
    every other file byte for byte. A checkpoint that was made of a pytree becomes an Orbax
    checkpoint of it.

    Args:
      path: a compressed checkpoint.
      out: the directory that will hold the files; it appears whole or not at all.
      progress: told of progress.

    Raises:
      InputError: a damaged checkpoint.
      DestinationError: `out` exists or cannot be written.
    """
    store, target = Store(Path(path)), Path(out)
    if target.resolve().is_relative_to(store.path.resolve()):
        raise InputError("destination lies inside the compressed checkpoint", file=target)
    if not store.index.files and not store.index.stores:
        orbax.save_tree(target, trees.decompress(load(path)))
        return
    with staged(target, "decompress") as stage, destination_errors(target):
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
        os.rename(stage / "out", target)


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

    others = [(key, store.index.blobs[blob]) for key, blob in item.others]
    array_store.write_store(
        folder,
        arrays(),
        [
            (key.encode("utf-8", "surrogateescape"), read_entry(store, entry).tobytes())
            for key, entry in others
        ],
        ocdbt=item.ocdbt,
    )
