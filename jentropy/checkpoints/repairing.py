"""Damaged files of a compressed checkpoint written anew, as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jentropy import codecs
from jentropy.containers.tensor import checksum
from jentropy.errors import InputError, UnsupportedError
from jentropy.errors import place as place_of
from jentropy.formats import codes_of

from . import durable, faults, frames, zarr_files
from .bases import Base, Bases, with_bases
from .contents import StoredArray
from .decoding import damage_of
from .entries import Entry
from .faults import reading, writing
from .items import Item
from .manifest import collect
from .mirrors import destination, resolve
from .opening import read_source
from .orbax_source import read_orbax
from .remote import RemotePath
from .staging import recover, staged
from .store import ARRAYS, METADATA_FILE, Store, is_compressed_checkpoint
from .verifying import of_tree

PURPOSE = "repair"
Damage = list[tuple[Entry, int, InputError]]  # entries and chunks of them


@faults.told
def repair(
    path: str | Path, source: str | Path | None = None, *, base: Bases = None
) -> tuple[InputError, ...]:
    """Writes what is damaged of a compressed checkpoint anew, byte for byte as it was.

    What Orbax wrote around the payloads is made of the index. Payloads come from another copy of
    the compressed checkpoint, or are coded again; those are taken that have the hash of the index.

    Args:
      path: a compressed checkpoint, of which a copy of the index can be read.
      source: what was compressed, or a copy of the compressed checkpoint; None: if no payload is
        damaged.
      base: see `load`; tensors that are told by it are coded again with it alone.

    Returns:
      What was damaged.

    Raises:
      InputError: what is still damaged, the first of it, which its `others` are.
      DestinationError: `path` cannot be written.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jentropy.save(f"{folder}/t", {"w": np.arange(3, dtype=np.int8)})
      ...     (Path(folder) / "t" / "state" / "_METADATA").unlink()
      ...     damage = jentropy.repair(f"{folder}/t")
      ...     len(damage), jentropy.verify(f"{folder}/t").tensors
      (1, 1)
    """
    found: list[InputError] = []
    place = destination(path)
    if isinstance(place, RemotePath):
        raise UnsupportedError("repair", file=place, expected="a path", found="a URL")
    recover(place, PURPOSE)
    store = with_bases(place, base, found)
    damage = list(damage_of(store, (*store.index.tensors, *store.index.blobs)))
    known = {error.file for error in (*found, *(error for _, _, error in damage))}
    outside = [*found, *frames.faults(store, known)]
    all_damage = (*outside, *(error for _, _, error in damage))
    if not all_damage:
        return ()
    left = _mend(store, source, damage, outside)
    left += frames.faults(Store(store.path, left))
    if left:
        error = left[0].among(left[1:])
        if source is not None:
            error.add_note(f"{place_of(source)} has not what was there")
        raise error
    return all_damage


def _mend(
    store: Store, source: str | Path | None, damage: Damage, outside: list[InputError]
) -> list[InputError]:
    """Writes what can be made again; what of the payloads cannot."""
    left: list[InputError] = []
    bundles = len(store.index.bundles)
    folders = {store.bundle_path(number): number for number in range(bundles)}
    patches: dict[int, dict[int, np.ndarray]] = {}  # by bundle, and offset in it
    for error in outside:
        file = Path(str(error.file))
        touched = (folders[place] for place in (file, *file.parents) if place in folders)
        patches |= {number: {} for number in touched}
    payloads = _payloads(source, store, damage)
    for (entry, number, error), payload in zip(damage, payloads, strict=True):
        bundle, offset = entry.places[number]
        here = patches.setdefault(bundle, {})
        if payload is None or checksum(payload) != entry.header.chunks[number].payload_hash:
            left.append(error)
        else:
            here[offset] = payload
    with staged(store.path, PURPOSE, replaces=lambda _: "") as stage, writing(store.path):
        for number in sorted(patches):
            _rewrite_bundle(store, number, patches[number], stage)
        frame = stage / "frame"
        frame.mkdir()
        made = frames.make(frame, store.text, bundles, store.index.version)
        durable.sync_tree(made)
        names = [file.relative_to(made) for file in made.rglob("*") if file.is_file()]
        for name in sorted(names, key=lambda name: name == Path(METADATA_FILE)):
            target = store.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made / name, target)
            durable.sync_folder(target.parent)
        durable.sync_folder(store.path / ARRAYS)
    return left


def _rewrite_bundle(
    store: Store, number: int, patches: Mapping[int, np.ndarray], stage: Path
) -> None:
    """A bundle of what is there and its patches, and all that lies around it."""
    folder, size = store.bundle_path(number), store.index.bundles[number]
    chunk = folder / zarr_files.CHUNK
    data = np.zeros(size, np.uint8)
    if chunk.is_file():
        with reading(chunk):
            there = np.fromfile(chunk, np.uint8, size)
        data[: there.size] = there
    for offset, payload in patches.items():
        data[offset : offset + payload.size] = payload
    chunk.parent.mkdir(parents=True, exist_ok=True)
    for file, content in (
        (chunk, data.tobytes() + zarr_files.shard_index(size)),
        (folder / zarr_files.METADATA, zarr_files.metadata(size)),
    ):
        durable.write(stage / "file", content)
        os.replace(stage / "file", file)
        durable.sync_folder(file.parent)


def _payloads(
    source: str | Path | None, store: Store, damage: Damage
) -> Iterator[np.ndarray | None]:
    """The payloads of damaged chunks, None of those that cannot be had."""
    if source is None:
        yield from (None for _ in damage)
        return
    path = resolve(source)
    if is_compressed_checkpoint(path):
        other = Store(path)
        for entry, number, _ in damage:
            yield _of_copy(other, entry, number)
        return
    originals = dict(_originals(store, path))
    for entry, number, _ in damage:
        array = originals.get(id(entry))
        yield None if array is None else _coded(store, entry, number, array)


def _of_copy(other: Store, entry: Entry, number: int) -> np.ndarray | None:
    try:
        return other.payload(*entry.places[number], entry.header.chunks[number].bytes)
    except (InputError, IndexError):
        return None


def _originals(store: Store, source: Path) -> Iterator[tuple[int, StoredArray]]:
    """Arrays of a source by the identity of their entries."""
    index = store.index
    if index.is_pytree:
        for entry, array in of_tree(store, read_orbax(source)):
            if array is not None:
                yield id(entry), array
        return
    manifest = collect(read_source(source))
    for entries, numbers in ((index.tensors, manifest.tensors), (index.blobs, manifest.blobs)):
        for entry, number in zip(entries, numbers, strict=False):
            item: Item = manifest.items[number]
            if isinstance(item.array, StoredArray) and item.name == entry.name:
                yield id(entry), item.array


def _coded(store: Store, entry: Entry, number: int, array: StoredArray) -> np.ndarray | None:
    """A chunk of an array coded as an entry says; None unless its codes have their hash."""
    header = entry.header
    if (tuple(array.shape), array.dtype.name) != (header.shape, header.dtype):
        return None
    span = header.span(number * header.chunk_weights)
    codes = codes_of(array.read()).reshape(-1)[span.start : span.start + span.size]
    codes = np.ascontiguousarray(codes)
    if checksum(codes) != header.chunks[number].codes_hash:
        return None
    if header.difference is not None and entry.base is not None:
        if store.base is None:
            raise store.no_base()
        base = Base(store.base).codes(entry.base, span.start, span.size)
        codes = header.difference.of(codes, base)
    (payload,) = codecs.encode([codes], [span])
    return payload
