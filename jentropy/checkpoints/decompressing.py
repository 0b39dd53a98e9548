"""A compressed checkpoint back into its original files."""

from __future__ import annotations

from pathlib import Path

from jentropy.containers import trees
from jentropy.errors import InputError

from . import array_store, orbax
from .decoding import all_bytes, file_bytes, read_entries
from .entries import StoreEntry
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
    store, target = Store(Path(path)), Path(out)
    if target.resolve().is_relative_to(store.path.resolve()):
        raise InputError("destination lies inside the compressed checkpoint", file=target)
    if overwrite and store.path.resolve().is_relative_to(target.resolve()):
        raise InputError("compressed checkpoint lies inside the destination", file=store.path)
    replaces = _others(store) if overwrite else None
    if store.index.is_pytree:
        orbax.save_tree(target, trees.decompress(load(path)), replaces=replaces)
        return
    expect(progress, all_bytes(store))
    with staged(target, "decompress", replaces=replaces) as stage, destination_errors(target):
        for item in store.index.stores:
            _write_store(store, item, stage / "out" / item.path, progress)
        for name, parts in file_bytes(store, progress):
            file = stage / "out" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                stream.writelines(part.data for part in parts)
        put_in_place(stage / "out", target, replace=overwrite)


def _write_store(store: Store, item: StoreEntry, folder: Path, progress: Progress | None) -> None:
    """Writes a store of an Orbax checkpoint as it was."""
    index = store.index
    arrays = read_entries(store, (index.tensors[n] for n, _, _ in item.arrays), progress)
    values = read_entries(store, (index.blobs[n] for _, n in item.others), progress)
    array_store.write_store(
        folder,
        (
            (prefix, told, array)
            for (_, prefix, told), array in zip(item.arrays, arrays, strict=True)
        ),
        ((key, value.tobytes()) for (key, _), value in zip(item.others, values, strict=True)),
        ocdbt=item.ocdbt,
    )


def _others(store: Store) -> Replaces:
    """Says what a directory holds that the checkpoint does not give back."""

    def strange(path: Path) -> str:
        if store.index.is_pytree:
            return "" if is_orbax_checkpoint(path) else "no Orbax checkpoint"
        if not path.is_dir():
            return "a file"
        inside = [p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()]
        ours = {f.path for f in store.index.files}
        for item in store.index.stores:
            prefixes = [prefix for _, prefix, _ in item.arrays]
            ours |= owned_files(inside, item.path, prefixes, ocdbt=item.ocdbt)
        return next((name for name in inside if name not in ours), "")

    return strange
