"""A compressed checkpoint back into its original files."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from jentropy.containers import trees
from jentropy.errors import InputError

from . import orbax
from .decoding import file_bytes, whole_bytes
from .loading import load
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

    A checkpoint that was made of a pytree or of an Orbax checkpoint becomes an Orbax checkpoint of
    the same arrays.

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
    if not store.index.files:
        tree = jax.tree.map(np.asarray, trees.decompress(load(path)))
        orbax.save_tree(target, tree, replaces=replaces)
        return
    expect(progress, whole_bytes(store))
    with (
        staged(target, "decompress", replaces=replaces) as stage,
        destination_errors(target),
    ):
        for name, parts in file_bytes(store):
            file = stage / "out" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                for part in parts:
                    stream.write(part.data)
                    if progress:
                        progress(part.size)
        put_in_place(stage / "out", target, replace=overwrite)


def _others(store: Store) -> Replaces:
    """Says what a directory holds that the checkpoint does not give back."""
    ours = {f.path for f in store.index.files}

    def found(path: Path) -> str:
        if not ours:
            return "" if is_orbax_checkpoint(path) else "no Orbax checkpoint"
        if not path.is_dir():
            return "a file"
        inside = (p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir())
        return next((name for name in inside if name not in ours), "")

    return found
