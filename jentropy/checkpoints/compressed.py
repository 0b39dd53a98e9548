"""A compressed checkpoint as a checkpoint, and as its original files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from jentropy.containers import coder
from jentropy.containers.tensor import dtype_named
from jentropy.formats import codes_of

from . import reading, safetensors, structure
from .checkpoint import Arrays, Checkpoint, Tensor
from .contents import StoredArray, decode_text, read_contents
from .index import Blocks, Entry, Filler, Part
from .store import Store


class CompressedCheckpoint(Checkpoint):
    """Weights of a compressed checkpoint; a weight is decoded when its codes are asked for.

    Args:
      strict: whether a config that contradicts the arrays is an error.
    """

    def __init__(self, path: Path, *, strict: bool = True):
        self.source = path
        self.store = Store(path)
        self._files = {f.path: f for f in self.store.index.files}
        self._entries = dict(named_entries(self.store))
        contents = read_contents(
            path,
            _arrays(self.store),
            self.read_text,
            self._metadata(),
            whole=len(self._files) != 1,
        )
        found = reading.read(contents, strict=strict)
        super().__init__(path, found.tensors, contents.config, found.notes)

    def _metadata(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for file in self.store.index.files:
            if file.model and file.path.endswith(safetensors.SUFFIX):
                blob = read_entry(self.store, self.store.index.blobs[file.blob]).tobytes()
                header = safetensors.parse_header(self.source / file.path, blob[8:])
                found.update(safetensors.text_metadata(header.get("__metadata__")))
        return found

    def read_all(self) -> Iterator[tuple[Tensor, Arrays]]:
        plain = [t for t in map(self.tensor, self.names()) if t.dtype is not None]
        entries = [self._entries[tensor.parts["code"]] for tensor in plain]
        decoded = read_entries(self.store, entries)
        for name in self.names():
            tensor = self.tensor(name)
            yield (
                tensor,
                tensor.codes if tensor.dtype is None else {"code": codes_of(next(decoded))},
            )

    def read_text(self, file: str) -> str | None:
        found = self._files.get(file)
        if found is None:
            return self.store.index.beside.get(file)
        if found.parts is not None:
            return None
        blob = read_entry(self.store, self.store.index.blobs[found.blob])
        return decode_text(self.source / file, blob.tobytes())


def named_entries(store: Store) -> list[tuple[str, Entry]]:
    """The entries that are the model's weights, by name.

    Raises:
      CorruptError: a tree that is not as FORMAT.md has it.
    """
    index = store.index
    if index.stores:  # two leaves of a tree may be one array
        structure.rebuild(index.tree, index.tensors, store.array_path("index"))
        return [(name, index.tensors[i]) for name, i in structure.numbers(index.tree)]
    numbers = [i for f in index.files if f.model for i in f.tensors]
    entries = [index.tensors[i] for i in numbers] if index.files else index.tensors
    return [(entry.name, entry) for entry in entries]


def model_entries(store: Store) -> list[Entry]:
    """The entries that are the model's weights, each once."""
    return list({id(entry): entry for _, entry in named_entries(store)}.values())


def _coded(store: Store, entry: Entry, *, whole: bool) -> Iterator[coder.Coded]:
    """The chunks of an entry; `whole` is whether `coder.assemble` will take them."""
    room = coder.room(entry.header) if whole else None
    for ref, span in zip(entry.chunks, entry.header.spans(), strict=True):
        file = store.bundle_path(ref)
        yield coder.Coded(entry.name, ref.chunk, store.payload(ref), span, file, room)


def read_entries(store: Store, entries: list[Entry]) -> Iterator[np.ndarray]:
    """The arrays of entries, in order; the chunks of many decode together."""
    decoded = coder.decode(item for entry in entries for item in _coded(store, entry, whole=True))
    for entry in entries:
        yield coder.assemble(decoded, entry.header)


def read_entry(store: Store, entry: Entry) -> np.ndarray:
    """The array of an entry."""
    (values,) = read_entries(store, [entry])
    return values


def _arrays(store: Store) -> Iterator[StoredArray]:
    """The arrays of the model's files, or of a pytree."""
    index = store.index
    if index.stores or not index.files:
        yield from (_array(store, entry, name) for name, entry in named_entries(store))
    for part in (part for f in index.files if f.model for part in f.parts or ()):
        if isinstance(part, int):
            yield _array(store, index.tensors[part], index.tensors[part].name)
        elif isinstance(part, Blocks):
            yield StoredArray(
                name=part.name,
                shape=part.shape,
                dtype=np.dtype(np.uint8),
                file=store.path,
                packing=part.packing,
                read=partial(_read_blocks, store, part),
            )


def _array(store: Store, entry: Entry, name: str) -> StoredArray:
    return StoredArray(
        name=name,
        shape=entry.header.shape,
        dtype=dtype_named(entry.header.dtype),
        file=store.path,
        read=lambda: read_entry(store, entry),
    )


def _read_blocks(store: Store, blocks: Blocks) -> np.ndarray:
    fields = list(read_entries(store, [store.index.tensors[i] for i in blocks.fields]))
    return _side_by_side(fields).reshape(blocks.shape)


def _side_by_side(fields: list[np.ndarray]) -> np.ndarray:
    """Bytes of rows whose fields lie one after another. uint8[rows, bytes]."""
    octets = [np.ascontiguousarray(field).reshape(-1).view(np.uint8) for field in fields]
    rows = len(fields[0])
    return np.concatenate(
        [part.reshape(rows, part.size // max(1, rows)) for part in octets], axis=1
    )


def file_bytes(store: Store) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Every file and its bytes, uint8, in order; each file's are to be used up before the next's.

    Chunks of many files decode together.
    """
    index = store.index
    plan = [(f.path, [Filler(f.blob), *(f.parts or ())]) for f in index.files]
    decoded = coder.decode(
        item
        for _, parts in plan
        for part in parts
        for entry in _entries(store, part)
        for item in _coded(store, entry, whole=isinstance(part, Blocks))
    )
    for name, parts in plan:
        yield name, (data for part in parts for data in _part_bytes(store, part, decoded))


def _entries(store: Store, part: Part) -> list[Entry]:
    """Entries that a part of a file is made of."""
    if isinstance(part, Filler):
        return [store.index.blobs[part.blob]]
    fields = part.fields if isinstance(part, Blocks) else (part,)
    return [store.index.tensors[i] for i in fields]


def _part_bytes(
    store: Store, part: Part, decoded: Iterator[tuple[coder.Coded, np.ndarray]]
) -> Iterator[np.ndarray]:
    """A part's bytes in pieces, from its decoded chunks."""
    entries = _entries(store, part)
    if isinstance(part, Blocks):
        fields = [coder.assemble(decoded, entry.header) for entry in entries]
        yield _side_by_side(fields).reshape(-1)
        return
    for _, codes in itertools.islice(decoded, len(entries[0].chunks)):
        yield np.ascontiguousarray(codes).view(np.uint8)
