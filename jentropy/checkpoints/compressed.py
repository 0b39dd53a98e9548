"""A compressed checkpoint as a checkpoint, as a pytree, and as its original files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jentropy.containers import trees
from jentropy.containers.tensor import CompressedTensor, first_twice
from jentropy.errors import InputError
from jentropy.formats import codes_of

from . import orbax, reading, structure
from .archived import Archive, stored_entry
from .checkpoint import Arrays, Checkpoint, Tensor
from .contents import read_contents
from .decoding import file_bytes, read_entries, whole_bytes
from .index import Entry
from .progress import Progress, expect
from .staging import Replaces, destination_errors, put_in_place, staged
from .store import Store, is_orbax_checkpoint
from .viewing import view


class CompressedCheckpoint(Checkpoint):
    """Weights of a compressed checkpoint; a weight is decoded when its codes are asked for.

    Args:
      within: path of one of its files or folders, to see that alone.
      strict: whether a config that contradicts the arrays is an error.
      lenient: whether what keeps it from being a checkpoint is a note.
    """

    def __init__(self, path: Path, within: str = "", *, strict: bool = True, lenient: bool = False):
        self.store = Store(path)
        self.archive = Archive(self.store, within)
        self.arrays = {array.name: array for array in self.archive.arrays()}
        if self.store.index.files:
            found = view(self.archive.choice, self.archive.contents, strict=strict, lenient=lenient)
            tensors, config, notes = found.tensors, found.config, found.notes
        else:
            leaves = [stored_entry(self.store, entry) for entry in self.store.index.tensors]
            contents = read_contents(path, leaves, lambda name: None)
            read = reading.read(contents, strict=strict)
            tensors, config, notes = read.tensors, None, read.notes
        super().__init__(path / within, tensors, config, notes)

    def read_all(self) -> Iterator[tuple[Tensor, Arrays]]:
        entries = {name: self._plain(self.tensor(name)) for name in self.names()}
        decoded = read_entries(self.store, [entry for entry in entries.values() if entry])
        for name, entry in entries.items():
            tensor = self.tensor(name)
            yield tensor, {"code": codes_of(next(decoded))} if entry else tensor.codes

    def _plain(self, tensor: Tensor) -> Entry | None:
        """The entry that is the tensor as it is, if there is one."""
        name = tensor.parts["code"]
        return None if tensor.dtype is None else self.arrays[name].entries.get(name)

    def read_text(self, file: str) -> str | None:
        return self.archive.read_text(file)


def load(path: str | Path, sharding: Any = None) -> Any:
    """Opens a compressed checkpoint without reading or decoding a weight.

    Args:
      path: a compressed checkpoint.
      sharding: where `decompress` will put the tensors: a `jax.sharding.Sharding` for all of them,
        or a pytree of them with None for the default.

    Returns:
      A pytree of `CompressedTensor`: the one that was saved, or a dict by name of the weights of a
      compressed checkpoint directory.

    Raises:
      InputError: not a compressed checkpoint, or one with a damaged index; damaged payloads are
        found when they are decoded.
    """
    store = Store(Path(path))
    if store.index.files:
        entries = [item for array in Archive(store).arrays() for item in array.entries.items()]
        if (twice := first_twice(name for name, _ in entries)) is not None:
            raise InputError("two arrays have this name", file=store.path, tensor=twice)
        tree: Any = {name: _packed(store, entry) for name, entry in entries}
    else:
        packed = [_packed(store, entry) for entry in store.index.tensors]
        tree = structure.rebuild(store.index.tree, packed, store.array_path("index"))
    return tree if sharding is None else trees.with_sharding(tree, sharding)


def _packed(store: Store, entry: Entry) -> CompressedTensor:
    pieces: list[np.ndarray] = []
    for _, group in itertools.groupby(entry.chunks, key=lambda ref: ref.bundle):
        refs = list(group)
        adjacent = all(a.offset + a.chunk.bytes == b.offset for a, b in itertools.pairwise(refs))
        parts = [store.payload(ref) for ref in refs]
        if adjacent:
            whole = replace(refs[0].chunk, bytes=sum(ref.chunk.bytes for ref in refs))
            parts = [store.payload(replace(refs[0], chunk=whole))]
        pieces += parts
    return CompressedTensor(payload=tuple(pieces), header=entry.header)


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
