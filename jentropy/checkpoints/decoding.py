"""The tensors and files of a compressed checkpoint, decoded; chunks of many decode together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jentropy.containers import coder
from jentropy.containers.slices import part_of
from jentropy.containers.tensor import CompressedTensor, dtype_named
from jentropy.errors import InputError
from jentropy.formats import code_dtype

from . import mapping
from .entries import Blocks, Entry, FileEntry, Filler, Section, fields_of
from .progress import Progress, counted
from .store import Store

NOTHING = np.zeros(0, np.uint8)
Damaged = Callable[[InputError], None]


def coded_chunk(
    store: Store, entry: Entry, chunk: int, room: np.ndarray | None = None
) -> coder.Coded:
    """A chunk of an entry.

    Args:
      room: all codes of the entry, where its own are to go; None: to an array of their own.
    """
    header, place = entry.header, entry.places[chunk]
    payload, error, base = NOTHING, None, None
    try:
        payload = store.payload(*place, header.chunks[chunk].bytes)
        if entry.base is not None:
            below = _base_of(store)
            base = coded_chunk(below, below.index.tensors[entry.base], chunk)
    except InputError as found:  # who decodes raises it, or goes on
        error = found
    return coder.Coded(
        name=entry.name,
        chunk=header.chunks[chunk],
        payload=payload,
        error=error,
        span=header.span(chunk * header.chunk_weights),
        file=store.bundle_path(place[0]),
        tensor=room,
        delta=header.difference,
        base=base,
    )


def _base_of(store: Store) -> Store:
    if store.base is None:
        raise store.no_base()
    return store.base


def decoded_codes(chunk: coder.Coded) -> np.ndarray:
    """The codes of one chunk."""
    ((_, codes),) = coder.decode([chunk])
    return codes


def _decoded(
    items: Iterable[coder.Coded], damaged: Damaged | None
) -> Iterator[tuple[coder.Coded, np.ndarray]]:
    """Each chunk and its codes; zeros of what is damaged, if somebody is told of it."""
    if damaged is None:
        yield from coder.decode(items)
        return
    for item, codes in coder.survey(items):
        if isinstance(codes, InputError):
            damaged(codes)
            codes = item.out
            codes[:] = 0
        yield item, codes


def _coded(store: Store, entry: Entry, down: bool) -> Iterator[coder.Coded]:
    """The chunks of an entry, for `coder.assemble`."""
    header = entry.header
    if down and header.raw_bytes > mapping.IN_MEMORY:
        room = mapping.room(header.raw_bytes).view(code_dtype(dtype_named(header.dtype)))
    else:
        room = coder.room(header)
    for chunk in range(len(entry.places)):
        yield coded_chunk(store, entry, chunk, room)


def read_entries(
    store: Store,
    entries: Iterable[Entry],
    progress: Progress | None = None,
    damaged: Damaged | None = None,
    *,
    down: bool = False,
) -> Iterator[np.ndarray]:
    """The arrays of entries, in order; the chunks of many decode together.

    Args:
      damaged: is told of what is damaged, which is zeros then; None: it is raised.
      down: whether large ones are put down in files without a name, which are mapped.
    """
    entries = list(entries)
    items = (item for entry in entries for item in _coded(store, entry, down))
    decoded = _decoded(items, damaged)
    return counted((coder.assemble(decoded, entry.header) for entry in entries), progress)


def read_chunks(
    store: Store,
    entries: Iterable[Entry],
    progress: Progress | None = None,
    damaged: Damaged | None = None,
) -> Iterator[Iterator[np.ndarray]]:
    """The codes of entries, in order, in parts; each one's are to be used up before the next's.

    The chunks of many decode together, and no array is in memory as a whole.

    Args:
      damaged: see `read_entries`.
    """
    entries = list(entries)
    items = (coded_chunk(store, entry, n) for entry in entries for n in range(len(entry.places)))
    decoded = _decoded(items, damaged)
    for entry in entries:
        chunks = (codes for _, codes in itertools.islice(decoded, len(entry.places)))
        yield counted(chunks, progress)


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
    payload = tuple(store.mapped_payload(*run) for run in runs)
    base = None
    if entry.base is not None and store.base is not None:
        base = compressed_tensor(store.base, store.base.index.tensors[entry.base])
    return CompressedTensor(payload=payload, header=entry.header, base=base)


def damage_of(
    store: Store, entries: Iterable[Entry], *, bases: bool = False
) -> Iterator[tuple[Entry, int, InputError]]:
    """The chunks of entries whose payloads are not what was stored, and why; none is decoded.

    Args:
      bases: whether the payloads of bases count too, without which a chunk is not decoded.
    """
    for entry in entries:
        for number in range(len(entry.places)):
            chunk: coder.Coded | None = coded_chunk(store, entry, number)
            while chunk is not None:
                if error := coder.payload_error(chunk):
                    yield entry, number, error
                    break
                chunk = chunk.base if bases else None


def read_entry(store: Store, entry: Entry) -> np.ndarray:
    """The array of an entry."""
    return next(read_entries(store, [entry]))


def read_part(store: Store, entry: Entry, index: Any) -> np.ndarray:
    """Part of the array of an entry, as `containers.decompress_slice` has it."""

    def chunks(wanted: Collection[int]) -> Iterator[coder.Coded]:
        return (coded_chunk(store, entry, chunk) for chunk in sorted(wanted))

    return part_of(entry.header, index, chunks, entry.name)


def read_blocks(store: Store, blocks: Blocks) -> np.ndarray:
    """An array of blocks, of its fields."""
    return _side_by_side(read_entries(store, entries_of(store, blocks))).reshape(blocks.shape)


def read_block_rows(store: Store, blocks: Blocks, index: tuple[slice, ...]) -> np.ndarray:
    """Some entries of the first axis of an array of blocks.

    Args:
      index: a slice of each axis, of all but the first the whole.
    """
    start, stop, _ = index[0].indices(blocks.shape[0])
    fields = entries_of(store, blocks)
    rows = fields[0].header.shape[0] // blocks.shape[0]  # of fields, to each entry
    parts = (read_part(store, field, slice(start * rows, stop * rows)) for field in fields)
    return _side_by_side(parts).reshape(stop - start, *blocks.shape[1:])


def _side_by_side(fields: Iterable[np.ndarray]) -> np.ndarray:
    """Bytes of rows whose fields lie one after another. uint8[rows, bytes]."""
    rows = [field.reshape(len(field), math.prod(field.shape[1:])) for field in fields]
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in rows], axis=1)


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a file is there already: whole sections, chunks of the next one, and their bytes."""

    sections: int = 0
    chunks: int = 0
    bytes: int = 0


def sections_of(file: FileEntry) -> list[Section]:
    """What a file is made of, in order."""
    return [Filler(file.blob), *(file.parts or ())]


def file_bytes(
    store: Store,
    progress: Progress | None = None,
    there: Mapping[str, Progressed] | None = None,
    damaged: Damaged | None = None,
    files: Iterable[FileEntry] | None = None,
) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Every file and its bytes, uint8, in order; each file's are to be used up before the next's.

    Chunks of many files decode together. No array is in memory as a whole.

    Args:
      there: how much of a file is left out; nothing of those that it does not name.
      damaged: see `read_entries`.
      files: which ones; None: all.
    """
    all_runs = []
    for file in store.index.files if files is None else files:
        done = (there or {}).get(file.path, Progressed())
        sections = sections_of(file)[done.sections :]
        runs = [_run(store, section) for section in sections]
        if runs:
            runs[0] = replace(runs[0], places=runs[0].places[done.chunks :])
        all_runs.append((file.path, runs))
    items = (item for _, runs in all_runs for run in runs for item in _coded_run(store, run))
    decoded = _decoded(items, damaged)
    for name, runs in all_runs:
        yield name, counted((part for run in runs for part in _bytes(run, decoded)), progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Chunks of a section in the order in which its bytes need them.

    Attributes:
      entries: of a tensor, a blob, or fields whose rows lie side by side.
      places: entry and chunk of each.
    """

    entries: list[Entry]
    places: list[tuple[int, int]]


def _run(store: Store, section: Section) -> Run:
    entries = entries_of(store, section)

    def begin(place: tuple[int, int]) -> float:  # as part of the field
        header = entries[place[0]].header
        return place[1] * header.chunk_weights / max(1, header.size)

    places = [(n, chunk) for n, entry in enumerate(entries) for chunk in range(len(entry.places))]
    return Run(entries=entries, places=sorted(places, key=begin) if len(entries) > 1 else places)


def _coded_run(store: Store, run: Run) -> Iterator[coder.Coded]:
    for n, chunk in run.places:
        yield coded_chunk(store, run.entries[n], chunk)


def _bytes(run: Run, decoded: Iterator[tuple[coder.Coded, np.ndarray]]) -> Iterator[np.ndarray]:
    """A section's bytes, of its decoded chunks."""
    chunks = itertools.islice(decoded, len(run.places))
    if len(run.entries) == 1:
        for _, codes in chunks:
            yield np.ascontiguousarray(codes).view(np.uint8)
        return
    widths = [math.prod(entry.header.shape[1:]) for entry in run.entries]
    waiting = [np.zeros(0, np.uint8)] * len(widths)  # of each field, what is no whole row of all
    for (n, _), (_, codes) in zip(run.places, chunks, strict=True):
        waiting[n] = np.concatenate([waiting[n].view(codes.dtype), codes])
        rows = min(len(part) // width for part, width in zip(waiting, widths, strict=True) if width)
        if rows:
            yield _side_by_side(
                part[: rows * width].reshape(rows, width)
                for part, width in zip(waiting, widths, strict=True)
            ).reshape(-1)
            waiting = [part[rows * width :] for part, width in zip(waiting, widths, strict=True)]


def entries_of(store: Store, section: Section) -> list[Entry]:
    """Entries that a section of a file is made of."""
    if isinstance(section, Filler):
        return [store.index.blobs[section.blob]]
    return [store.index.tensors[i] for i in fields_of(section)]
