"""Files and stores of a compressed checkpoint written into a folder that may have some of them.

What is there is held to the hashes of the index, so that no journal is needed: of a file its sound
beginning stays, of a store its sound arrays. All else is removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jentropy.containers.tensor import TensorHeader, checksum
from jentropy.errors import InputError
from jentropy.formats import codes_of

from . import array_store, durable, smaller_chunks
from .array_store import ZarrArray
from .decoding import Progressed, entries_of, file_bytes, read_entries, sections_of
from .entries import Entry, FileEntry, Section, StoreEntry
from .mapping import mapped
from .orbax_source import owned_files
from .progress import Progress
from .store import Store


def remaining_bytes(store: Store, there: Mapping[str, Progressed]) -> int:
    """Bytes of files that are still to be written; those of stores, coded again, are not known."""
    total = 0
    for file in store.index.files:
        entries = (e for section in sections_of(file) for e in entries_of(store, section))
        done = there[file.path].bytes if file.path in there else 0
        total += sum(entry.header.raw_bytes for entry in entries) - done
    return total


def take_up(store: Store, folder: Path) -> dict[str, Progressed]:
    """How much of each file is there; what is none of the checkpoint's is removed."""
    there: dict[str, Progressed] = {}
    if not folder.is_dir():
        return there
    for name in list(strange(store, folder)):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for file in store.index.files:
        path = folder / file.path
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)  # what it was given last may forbid to go on
            there[file.path] = _sound(store, file, mapped(path))
    return there


def strange(store: Store, folder: Path) -> Iterator[str]:
    """Files in a folder that the checkpoint does not give back."""
    inside = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()]
    ours = {f.path for f in store.index.files}
    for item in store.index.stores:
        prefixes = [prefix for _, prefix, _ in item.arrays]
        ours |= owned_files(inside, item.path, prefixes, ocdbt=item.ocdbt)
    return (name for name in inside if name not in ours)


def _sound(store: Store, file: FileEntry, data: np.ndarray) -> Progressed:
    """How far the bytes of a file are what the index says."""
    at = 0
    for number, section in enumerate(sections_of(file)):
        entries = entries_of(store, section)
        size = sum(entry.header.raw_bytes for entry in entries)
        chunks, done = _sound_chunks(section, entries, data[at : at + size])
        if done < size:
            return Progressed(number, chunks, at + done)
        at += size
    return Progressed(len(sections_of(file)), 0, at)


def _sound_chunks(section: Section, entries: list[Entry], data: np.ndarray) -> tuple[int, int]:
    """Chunks and bytes that a section soundly begins with; of rows of fields all or none."""
    if len(entries) == 1:
        header = entries[0].header
        chunks = same_chunks(header, data)
        item = header.raw_bytes // max(1, header.size)
        return chunks, min(chunks * header.chunk_weights, header.size) * item
    rows = entries[0].header.shape[0]
    size = sum(entry.header.raw_bytes for entry in entries)
    if data.size < size or not rows:
        return 0, 0
    side_by_side, begin = data.reshape(rows, -1), 0
    for entry in entries:
        end = begin + entry.header.raw_bytes // rows
        if same_chunks(entry.header, side_by_side[:, begin:end]) < len(entry.header.chunks):
            return 0, 0
        begin = end
    return 0, size


def same_chunks(header: TensorHeader, data: np.ndarray) -> int:
    """How many chunks bytes begin with that have the hashes of a tensor's."""
    item = header.raw_bytes // max(1, header.size)
    width = max(1, data.shape[-1])  # of a row, if there are rows
    for number, (span, chunk) in enumerate(zip(header.spans(), header.chunks, strict=True)):
        begin, end = span.start * item, (span.start + span.size) * item
        if data.ndim == 1:
            part = data[begin:end]
        else:
            first = begin // width
            rows = data[first : -(-end // width)].reshape(-1)  # of a chunk, copied
            part = rows[begin - first * width : end - first * width]
        if part.size < end - begin or checksum(part) != chunk.codes_hash:
            return number
    return len(header.chunks)


def write_files(
    store: Store, folder: Path, there: Mapping[str, Progressed], progress: Progress | None
) -> None:
    """Writes the files, or what is left of them."""
    folders, modes = {folder}, {file.path: file for file in store.index.files}
    for name, parts in file_bytes(store, progress, there):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in there:
            durable.truncate(path, there[name].bytes)
        with durable.opened(path, keep=name in there) as stream:
            stream.writelines(part.data for part in parts)
            _tell(stream, modes[name])
            durable.close(stream)
        folders |= {folder / above for above in Path(name).parents}
    for above in folders:
        durable.sync_folder(above)


def _tell(stream: BinaryIO, file: FileEntry) -> None:
    """Gives a file its mode and the time of its last change, which writing it out may change."""
    stream.flush()
    if file.mode is not None and hasattr(os, "fchmod"):
        os.fchmod(stream.fileno(), file.mode)
    if file.modified_ns is not None and os.utime in os.supports_fd:
        os.utime(stream.fileno(), ns=(file.modified_ns, file.modified_ns))


def write_store(
    store: Store,
    item: StoreEntry,
    folder: Path,
    progress: Progress | None,
    sound: Collection[str],
) -> None:
    """Writes a store of an Orbax checkpoint as it was, or the arrays of it that are not there.

    Args:
      sound: prefixes of those that are.
    """
    index = store.index
    left = [(number, prefix, told) for number, prefix, told in item.arrays if prefix not in sound]
    entries = (index.tensors[number] for number, _, _ in left)
    arrays = read_entries(store, entries, progress, down=True)
    values = read_entries(store, (index.blobs[n] for _, n in item.others), progress)
    array_store.write_store(
        folder,
        ((prefix, told, array) for (_, prefix, told), array in zip(left, arrays, strict=True)),
        ((key, value.tobytes()) for (key, _), value in zip(item.others, values, strict=True)),
        ocdbt=item.ocdbt,
    )
    durable.sync_tree(folder)


def sound_arrays(store: Store, item: StoreEntry, folder: Path) -> set[str]:
    """Prefixes of the arrays of a store that are there as they are to be."""
    if not folder.is_dir() or (item.ocdbt and not array_store.is_ocdbt(folder)):
        return set()
    wanted = {prefix: (number, told) for number, prefix, told in item.arrays}
    groups = [list(wanted)] if item.ocdbt else [[prefix] for prefix in wanted]
    sound = set()
    for prefixes in groups:
        with suppress(InputError):  # killed while it was written
            arrays, _ = array_store.read_store(folder, () if item.ocdbt else prefixes)
            for found in arrays:
                if found.prefix in wanted:
                    number, told = wanted[found.prefix]
                    if _is_sound(found, store.index.tensors[number].header, told):
                        sound.add(found.prefix)
    return sound


def _is_sound(found: ZarrArray, header: TensorHeader, told: Mapping[str, Any]) -> bool:
    itemsize = header.raw_bytes // max(1, header.size)
    if found.metadata != smaller_chunks.divided(told, itemsize):
        return False
    with suppress(InputError):
        codes = codes_of(found.array.read()).reshape(-1).view(np.uint8)
        return same_chunks(header, codes) == len(header.chunks)
    return False
