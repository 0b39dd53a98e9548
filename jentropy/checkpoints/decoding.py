"""The tensors and files of a compressed checkpoint, decoded; chunks of many decode together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from jentropy.containers import coder
from jentropy.containers.tensor import CompressedTensor

from .entries import Blocks, Entry, Filler, Section, fields_of
from .progress import Progress, counted
from .store import Store


def _coded(store: Store, entry: Entry, *, together: bool) -> Iterator[coder.Coded]:
    """The chunks of an entry; `together` is whether `coder.assemble` will take them."""
    room = coder.room(entry.header) if together else None
    header = entry.header
    for place, chunk, span in zip(entry.places, header.chunks, header.spans(), strict=True):
        yield coder.Coded(
            name=entry.name,
            chunk=chunk,
            payload=store.payload(*place, chunk.bytes),
            span=span,
            file=store.bundle_path(place[0]),
            tensor=room,
        )


def read_entries(
    store: Store, entries: Iterable[Entry], progress: Progress | None = None
) -> Iterator[np.ndarray]:
    """The arrays of entries, in order; the chunks of many decode together."""
    entries = list(entries)
    decoded = coder.decode(
        item for entry in entries for item in _coded(store, entry, together=True)
    )
    return counted((coder.assemble(decoded, entry.header) for entry in entries), progress)


def all_bytes(store: Store) -> int:
    """Bytes of all tensors and blobs, decoded."""
    return sum(e.header.raw_bytes for e in (*store.index.tensors, *store.index.blobs))


def compressed_tensor(store: Store, entry: Entry) -> CompressedTensor:
    """An entry as a tensor whose payload is read when it is decoded."""
    runs: list[list[int]] = []  # bundle, offset and bytes of payloads that lie one after another
    for (bundle, offset), chunk in zip(entry.places, entry.header.chunks, strict=True):
        if runs and runs[-1][0] == bundle and sum(runs[-1][1:]) == offset:
            runs[-1][2] += chunk.bytes
        else:
            runs.append([bundle, offset, chunk.bytes])
    payload = tuple(store.payload(*run) for run in runs)
    return CompressedTensor(payload=payload, header=entry.header)


def read_entry(store: Store, entry: Entry) -> np.ndarray:
    """The array of an entry."""
    return next(read_entries(store, [entry]))


def read_blocks(store: Store, blocks: Blocks) -> np.ndarray:
    """An array of blocks, of its fields."""
    return _side_by_side(read_entries(store, entries_of(store, blocks))).reshape(blocks.shape)


def _side_by_side(fields: Iterable[np.ndarray]) -> np.ndarray:
    """Bytes of rows whose fields lie one after another. uint8[rows, bytes]."""
    rows = [field.reshape(len(field), math.prod(field.shape[1:])) for field in fields]
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in rows], axis=1)


def file_bytes(
    store: Store, progress: Progress | None = None
) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Every file and its bytes, uint8, in order; each file's are to be used up before the next's.

    Chunks of many files decode together.
    """
    files = [(f.path, [Filler(f.blob), *(f.parts or ())]) for f in store.index.files]
    decoded = coder.decode(
        item
        for _, sections in files
        for section in sections
        for entry in entries_of(store, section)
        for item in _coded(store, entry, together=isinstance(section, Blocks))
    )
    for name, sections in files:
        parts = (part for section in sections for part in _section(store, section, decoded))
        yield name, counted(parts, progress)


def entries_of(store: Store, section: Section) -> list[Entry]:
    """Entries that a section of a file is made of."""
    if isinstance(section, Filler):
        return [store.index.blobs[section.blob]]
    return [store.index.tensors[i] for i in fields_of(section)]


def _section(
    store: Store, section: Section, decoded: Iterator[tuple[coder.Coded, np.ndarray]]
) -> Iterator[np.ndarray]:
    """A section's bytes, of its decoded chunks."""
    entries = entries_of(store, section)
    if isinstance(section, Blocks):
        fields = [coder.assemble(decoded, entry.header) for entry in entries]
        yield _side_by_side(fields).reshape(-1)
        return
    for _, codes in itertools.islice(decoded, len(entries[0].places)):
        yield np.ascontiguousarray(codes).view(np.uint8)
