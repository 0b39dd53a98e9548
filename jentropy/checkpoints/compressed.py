"""A compressed checkpoint as a checkpoint, as a pytree, and as its original files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jentropy.containers import coder, trees
from jentropy.containers.tensor import CompressedTensor, dtype_named
from jentropy.errors import InputError
from jentropy.formats import codes_of

from . import gguf_files, orbax, reading, safetensors, structure
from .checkpoint import Arrays, Checkpoint, Tensor
from .compressing import Progress
from .contents import StoredArray, decode_text, read_contents
from .index import Blocks, Entry, Filler, Part
from .staging import destination_errors, staged
from .store import Store


class CompressedCheckpoint(Checkpoint):
    """Weights of a compressed checkpoint; a weight is decoded when its codes are asked for.

    Args:
      strict: whether a weight that its dialect cannot explain is an error.
    """

    def __init__(self, path: Path, *, strict: bool = False):
        self.source = path
        self.store = Store(path)
        self._files = {f.path: f for f in self.store.index.files}
        self._entries = {entry.name: entry for entry in model_entries(self.store)}
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
                blob = _read(self.store, self.store.index.blobs[file.blob]).tobytes()
                header = safetensors.parse_header(self.source / file.path, blob[8:])
                found.update(safetensors.text_metadata(header.get("__metadata__")))
        return found

    def read_all(self) -> Iterator[tuple[Tensor, Arrays]]:
        tensors = [self.tensor(name) for name in self.names()]
        # An array that is stored in one piece and as it is.
        found = [None if t.dtype is None else self._entries.get(t.parts["code"]) for t in tensors]
        decoded = read_entries(self.store, [entry for entry in found if entry is not None])
        for tensor, entry in zip(tensors, found, strict=True):
            codes = tensor.codes if entry is None else {"code": codes_of(next(decoded))}
            yield tensor, codes

    def read_text(self, file: str) -> str | None:
        found = self._files.get(file)
        if found is None:
            return self.store.index.beside.get(file)
        if found.parts is not None:
            return None
        blob = _read(self.store, self.store.index.blobs[found.blob])
        return decode_text(self.source / file, blob.tobytes())


def model_entries(store: Store) -> list[Entry]:
    """The entries that are the model's weights."""
    index = store.index
    if not index.files:
        return list(index.tensors)
    return [index.tensors[i] for f in index.files if f.model for i in f.tensors]


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


def _read(store: Store, entry: Entry) -> np.ndarray:
    (values,) = read_entries(store, [entry])
    return values


def _arrays(store: Store) -> Iterator[StoredArray]:
    """The arrays of the model's files, or of a pytree."""
    index = store.index
    if not index.files:
        yield from (_array(store, entry) for entry in index.tensors)
    for part in (part for f in index.files if f.model for part in f.parts or ()):
        if isinstance(part, int):
            yield _array(store, index.tensors[part])
        elif isinstance(part, Blocks):
            yield gguf_files.native(
                StoredArray(
                    name=part.name,
                    shape=part.shape,
                    dtype=np.dtype(np.uint8),
                    file=store.path,
                    packing=part.packing,
                    read=partial(_read_blocks, store, part),
                )
            )


def _array(store: Store, entry: Entry) -> StoredArray:
    return StoredArray(
        name=entry.name,
        shape=entry.header.shape,
        dtype=dtype_named(entry.header.dtype),
        file=store.path,
        read=lambda: _read(store, entry),
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
    entries = model_entries(store)
    packed = [_packed(store, entry) for entry in entries]
    if store.index.files:
        tree = dict(zip((entry.name for entry in entries), packed, strict=True))
    else:
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
    path: str | Path, out: str | Path, progress: Progress | None = None
) -> None:
    """Writes the original files, byte for byte.

    A checkpoint that was made of a pytree or of an Orbax checkpoint becomes an Orbax checkpoint of
    the same arrays.

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
    if not store.index.files:
        orbax.save_tree(target, jax.tree.map(np.asarray, trees.decompress(load(path))))
        return
    with staged(target, "decompress") as stage, destination_errors(target):
        for name, parts in file_bytes(store):
            file = stage / "out" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                for part in parts:
                    stream.write(part.data)
                    if progress:
                        progress(part.size)
        os.rename(stage / "out", target)


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
