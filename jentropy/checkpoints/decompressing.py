"""A compressed checkpoint back into its original files."""

from __future__ import annotations

from pathlib import Path

from jentropy.containers import memory
from jentropy.errors import InputError

from . import durable, faults, tree_writing
from .bases import Bases, expect_base, with_bases
from .decoding import all_bytes
from .faults import writing
from .mirrors import destination, located
from .progress import Progress, expect
from .restoring import remaining_bytes, sound_arrays, strange, take_up, write_files, write_store
from .staging import (
    OUT,
    Replaces,
    expect_space,
    put_in_place,
    recover,
    staged,
)
from .store import Store, is_orbax_checkpoint

PURPOSE = "decompress"


@faults.told
def decompress_checkpoint(
    path: str | Path,
    out: str | Path,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    base: Bases = None,
) -> None:
    """Writes the original files, byte for byte.

    An Orbax checkpoint comes back as one to Orbax: its arrays written anew as they were laid out,
    every other file byte for byte. A checkpoint that was made of a pytree becomes an Orbax
    checkpoint of it, with the texts that were saved beside it. Chunks of more than 64 MiB, which
    Orbax would have to be given whole, become smaller ones in both.

    Work that was killed, was interrupted or failed is taken up by the next call: what it wrote is
    held to the hashes of the checkpoint.

    Args:
      path: a compressed checkpoint, or its URL.
      out: the directory that will hold the files; it appears whole or not at all. Behind a URL
        files appear one by one, and commands refuse to read them until all are there.
      progress: called with the bytes done since the last call; see `progress.Progress`.
      overwrite: whether a directory that holds nothing but such files is replaced.
      base: see `load`.

    Raises:
      InputError: a damaged checkpoint.
      DestinationError: `out` exists or cannot be written.

    Example:
      >>> import tempfile, jentropy
      >>> from pathlib import Path
      >>> header = b'{"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'
      >>> data = len(header).to_bytes(8, "little") + header + b"abcd"
      >>> with tempfile.TemporaryDirectory() as name:
      ...     folder = Path(name)
      ...     _ = (folder / "model.safetensors").write_bytes(data)
      ...     jentropy.compress_checkpoint(folder / "model.safetensors", folder / "packed")
      ...     jentropy.decompress_checkpoint(folder / "packed", folder / "out")
      ...     (folder / "out" / "model.safetensors").read_bytes() == data
      True
    """
    store, target = with_bases(located(path), base), destination(out)
    expect_base(store)
    if target.resolve().is_relative_to(store.path.resolve()):
        raise InputError("destination lies inside the compressed checkpoint", file=target)
    if overwrite and store.path.resolve().is_relative_to(target.resolve()):
        raise InputError("compressed checkpoint lies inside the destination", file=store.path)
    recover(target, PURPOSE)
    replaces = _others(store) if overwrite else None
    total = all_bytes(store)
    memory.expect(min(memory.WORKING, total), "decompressing")
    if store.index.is_pytree:
        _write_tree(store, target, replaces, progress)
        return
    with (
        staged(target, PURPOSE, resumable=True, replaces=replaces) as stage,
        writing(target),
    ):
        made = stage / OUT
        there = take_up(store, made)
        expect_space(target, remaining_bytes(store, there))
        done = sum(file.bytes for file in there.values())
        expect(progress, total, done)
        for item in store.index.stores:
            sound = sound_arrays(store, item, made / item.path)
            write_store(store, item, made / item.path, progress, sound)
            for above in Path(item.path).parents:
                durable.sync_folder(made / above)
        made.mkdir(exist_ok=True)
        write_files(store, made, there, progress)
        put_in_place(made, target, replace=overwrite)


def _write_tree(
    store: Store, target: Path, replaces: Replaces | None, progress: Progress | None
) -> None:
    """Writes a pytree as a checkpoint of Orbax."""
    with staged(target, PURPOSE, resumable=True, replaces=replaces) as stage, writing(target):
        made = tree_writing.write(store, stage, target, progress)
        put_in_place(made, target, replace=replaces is not None)


def _others(store: Store) -> Replaces:
    """Says what a directory holds that the checkpoint does not give back."""

    def other(path: Path) -> str:
        if store.index.is_pytree:
            return "" if is_orbax_checkpoint(path) else "no Orbax checkpoint"
        return next(strange(store, path), "") if path.is_dir() else "a file"

    return other
