"""What a compressed checkpoint shows: the components of its files, or the leaves of its tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from jentropy.containers.tensor import dtype_named
from jentropy.errors import CorruptError, InputError

from . import choosing, gguf_files, orbax_source, recorded, safetensors, structure
from .checkpoint import Tensor
from .choosing import TREE, Component
from .contents import StoredArray
from .decoding import entries_of, read_block_rows, read_blocks, read_entry, read_part
from .entries import Blocks, Entry, FileEntry
from .store import Store, is_compressed_checkpoint
from .viewing import Source


class Archive(Source):
    """The files of a compressed checkpoint as a directory, or a file or a folder in it.

    Args:
      within: path of the file or the folder; "" for all.

    Raises:
      InputError: nothing of that path.
    """

    def __init__(self, store: Store, within: str = ""):
        self._store = store
        paths = [f.path for f in store.index.files]
        is_file = within in paths
        folder = within.rpartition("/")[0] if is_file else within
        start = f"{folder}/" if folder else ""
        self._files = {
            f.path.removeprefix(start): f for f in store.index.files if f.path.startswith(start)
        }
        self.root = store.path / folder
        if within and not self._files:
            raise InputError("no such file or directory in it", file=store.path / within)
        self._inside: dict[str, list[tuple[str, int | Blocks]]] = {}
        self._leaves = list(_leaves(store)) if store.index.has_tree else []
        shown = self._files if folder else paths
        self.whole = (len(shown) != 1 or bool(store.index.stores)) and not is_file
        if store.index.has_tree and not within:
            notes = orbax_source.notes(paths, store.index.tree) if store.index.stores else ()
            self.choice = choosing.of_tree([name for name, _ in self._leaves], notes)
            return
        files = [within.removeprefix(start)] if is_file else list(self._files)
        self.choice = choosing.choose(self.root, files, self._names, self._read)
        if is_file or (len(paths) == 1 and not store.index.stores):  # as the file by its path says
            self.choice = replace(self.choice, notes=(), fault=None)
        if store.index.stores and not self.choice.components:
            raise InputError(
                "folder of an Orbax checkpoint in it",
                file=store.path / within,
                expected="the whole",
                found=within,
                hint=f"open {store.path}: names begin with step and item",
            )

    def arrays(self) -> Iterator[tuple[str, dict[str, Entry]]]:
        """Names of the arrays that are shown, in order, and the entries that each is made of.

        Entries are by name, which is the array's if it is one; all names begin with the
        component's prefix.
        """
        for component in self.choice.components:
            for name, part in self._shown(component):
                entries = entries_of(self._store, part)
                names = [name] if isinstance(part, int) else [entry.name for entry in entries]
                named = zip(names, entries, strict=True)
                yield component.prefix + name, {component.prefix + n: e for n, e in named}

    def shown_files(self) -> list[FileEntry]:
        """The files that hold arrays of the model."""
        files = [file for part in self.choice.components for file in part.files]
        return [self._files[file] for file in files if file != TREE]

    def read_file(self, path: str) -> bytes | str | None:
        data = self._read(path)
        return self._store.index.beside.get(path) if data is None else data

    def arrays_in(self, file: str) -> dict[str, StoredArray]:
        return {name: self._array(name, part) for name, part in self._parts(file)}

    def recorded(self, component: Component, arrays: Mapping[str, StoredArray]) -> list[Tensor]:
        if not (self._store.index.weights or TREE in component.files):
            return []
        numbers: dict[int, StoredArray] = {}
        for name, part in self._shown(component):
            number = part.fields[0] if isinstance(part, Blocks) else part
            numbers.setdefault(number, arrays[name])
        index, file = self._store.index, self._store.array_path("index")
        trees = recorded.of_tree(index.tree, numbers, file) if TREE in component.files else ()
        return [*recorded.recall(index, numbers, file), *trees]

    def _shown(self, component: Component) -> Iterator[tuple[str, int | Blocks]]:
        for file, names in component.files.items():
            parts = dict(self._parts(file))
            for name in names:
                yield name, parts[name]

    def _names(self, file: str) -> list[str]:
        return [name for name, _ in self._parts(file)]

    def _parts(self, file: str) -> Sequence[tuple[str, int | Blocks]]:
        """Arrays of a file by their names in it; those of the tree."""
        if file == TREE:
            return self._leaves
        if file not in self._inside:
            self._inside[file] = list(self._arrays_of(file))
        return self._inside[file]

    def _arrays_of(self, file: str) -> Iterator[tuple[str, int | Blocks]]:
        parts = self._files[file].parts
        if parts is None:
            raise CorruptError(
                "file of the model",
                file=self.root / file,
                expected="its tensors in the archive",
                found="bytes",
            )
        for part in parts:
            if isinstance(part, Blocks):
                yield part.name, part
            elif isinstance(part, int):
                yield self._store.index.tensors[part].name, part

    def _array(self, name: str, part: int | Blocks) -> StoredArray:
        store = self._store
        if isinstance(part, Blocks):
            return gguf_files.native(
                StoredArray(
                    name=name,
                    shape=part.shape,
                    dtype=np.dtype(np.uint8),
                    file=store.path,
                    packing=part.packing,
                    read=partial(read_blocks, store, part),
                    part=partial(read_block_rows, store, part),
                )
            )
        entry = store.index.tensors[part]
        return StoredArray(
            name=name,
            shape=entry.shape,
            dtype=dtype_named(entry.dtype),
            file=store.path,
            read=partial(read_entry, store, entry),
            part=partial(read_part, store, entry),
        )

    def _read(self, file: str) -> bytes | None:
        entry = self._files.get(file)
        if entry is None or entry.parts is not None:
            return None
        return read_entry(self._store, self._store.index.blobs[entry.blob]).tobytes()

    def metadata_of(self, file: str) -> dict[str, str]:
        if not safetensors.is_named(file):
            return {}
        blob = read_entry(self._store, self._store.index.blobs[self._files[file].blob])
        text = blob[safetensors.LENGTH_BYTES :].tobytes()
        if safetensors.METADATA.encode() not in text:  # most have none, and are long
            return {}
        header = safetensors.parse_header(self.root / file, text)
        return safetensors.text_metadata(header.get(safetensors.METADATA))


def inside_archive(path: Path) -> tuple[Path, str] | None:
    """The compressed checkpoint that a path leads into, and the path in it."""
    if not path.exists():
        for folder in path.parents:
            if is_compressed_checkpoint(folder):
                return folder, path.relative_to(folder).as_posix()
    return None


def _leaves(store: Store) -> Iterator[tuple[str, int]]:
    """Names and numbers of the leaves of its tree."""
    index = store.index
    if not index.stores:
        yield from ((entry.name, i) for i, entry in enumerate(index.tensors))
        return
    yield from structure.numbers(index.tree)  # two may be one array
