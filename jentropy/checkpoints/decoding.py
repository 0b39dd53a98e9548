"""The tensors and files of a compressed checkpoint, decoded; chunks of many decode together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from jentropy.containers import coder

from .index import Blocks, Entry, Filler, Section
from .store import Store


def _coded(store: Store, entry: Entry, *, whole: bool) -> Iterator[coder.Coded]:
    """The chunks of an entry; `whole` is whether `coder.assemble` will take them."""
    room = coder.room(entry.header) if whole else None
    header = entry.header
    for place, chunk, span in zip(entry.places, header.chunks, header.spans(), strict=False):
        yield coder.Coded(
            name=entry.name,
            chunk=chunk,
            payload=store.payload(*place, chunk.bytes),
            span=span,
            file=store.bundle_path(place[0]),
            tensor=room,
        )


def read_entries(store: Store, entries: list[Entry]) -> Iterator[np.ndarray]:
    """The arrays of entries, in order; the chunks of many decode together."""
    decoded = coder.decode(item for entry in entries for item in _coded(store, entry, whole=True))
    for entry in entries:
        yield coder.assemble(decoded, entry.header)


def whole_bytes(store: Store) -> int:
    """Bytes of all tensors and files, decoded."""
    return sum(e.header.raw_bytes for e in (*store.index.tensors, *store.index.blobs))


def read_entry(store: Store, entry: Entry) -> np.ndarray:
    """The array of an entry."""
    (values,) = read_entries(store, [entry])
    return values


def read_blocks(store: Store, blocks: Blocks) -> np.ndarray:
    """An array of blocks, of its fields."""
    return _side_by_side(list(read_entries(store, entries_of(store, blocks)))).reshape(blocks.shape)


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
        for entry in entries_of(store, part)
        for item in _coded(store, entry, whole=isinstance(part, Blocks))
    )
    for name, parts in plan:
        yield name, (data for part in parts for data in _part_bytes(store, part, decoded))


def entries_of(store: Store, part: Section) -> list[Entry]:
    """Entries that a part of a file is made of."""
    if isinstance(part, Filler):
        return [store.index.blobs[part.blob]]
    fields = part.fields if isinstance(part, Blocks) else (part,)
    return [store.index.tensors[i] for i in fields]


def _part_bytes(
    store: Store, part: Section, decoded: Iterator[tuple[coder.Coded, np.ndarray]]
) -> Iterator[np.ndarray]:
    """A part's bytes in pieces, from its decoded chunks."""
    entries = entries_of(store, part)
    if isinstance(part, Blocks):
        fields = [coder.assemble(decoded, entry.header) for entry in entries]
        yield _side_by_side(fields).reshape(-1)
        return
    for _, codes in itertools.islice(decoded, len(entries[0].places)):
        yield np.ascontiguousarray(codes).view(np.uint8)
