"""Checkpoints and pytrees into compressed checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from jentropy.containers import coder, pieces, trees
from jentropy.containers.tensor import chunk_length
from jentropy.errors import InputError
from jentropy.formats import ElementFormat

from . import index as index_lib
from . import orbax, reading, safetensors, structure
from .hub import resolve
from .index import FileEntry
from .safetensors import SafetensorsFile
from .sources import FileSource, read_file_source
from .staging import refuse_existing
from .store import is_compressed_checkpoint, is_orbax_checkpoint
from .writer import Writer, writing

Progress = Callable[[int], None]  # called with the number of source bytes done since the last call


@dataclass(slots=True)
class _Item:
    """A tensor or a blob to write, and what is known of it so far."""

    name: str
    values: np.ndarray
    is_blob: bool
    element: ElementFormat | None = None  # of the codes, if it is not the dtype's
    header: dict[str, Any] | None = None
    chunks: list[list[Any]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        expected = -(-self.values.size // chunk_length(tuple(self.values.shape)))
        return self.header is not None and len(self.chunks) == expected

    def draft(self) -> coder.Draft:
        skip = len(self.chunks)
        if self.is_blob:
            return coder.blob(self.name, self.values, skip=skip)
        return coder.draft(self.name, self.values, element=self.element, skip=skip)

    def entry(self) -> dict[str, Any]:
        assert self.header is not None
        return index_lib.entry_document(self.name, self.header, self.chunks)


def compress_checkpoint(src: str | Path, dst: str | Path, progress: Progress | None = None) -> None:
    """Compresses a checkpoint, with every file that lies beside its weights.

    Killed or interrupted work is taken up by the next call with the same arguments.

    Args:
      src: a safetensors file, a directory in Hugging Face form, an Orbax checkpoint (which is read
        whole, and not taken up), or `hf://owner/name`.
      dst: where the compressed checkpoint will appear, whole or not at all.
      progress: told of progress.

    Raises:
      InputError: a source that cannot be read, by file and tensor.
      DestinationError: `dst` exists or cannot be written.
    """
    target = Path(dst)
    refuse_existing(target)
    source = resolve(src)
    if is_compressed_checkpoint(source):
        raise InputError("already a compressed checkpoint", file=source)
    if source.is_dir() and is_orbax_checkpoint(source):
        save(target, trees.compress(orbax.load_tree(source)))
        return
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise InputError("destination lies inside the source", file=target)
    files = read_file_source(source)
    items, entries = _collect(files)
    fingerprint = _fingerprint(files)
    with writing(target, fingerprint) as writer:
        _write(writer, items, progress)
        if _fingerprint(files) != fingerprint:
            raise InputError("files changed while they were being compressed", file=source)
        tensors = [item.entry() for item in items if not item.is_blob]
        blobs = [item.entry() for item in items if item.is_blob]
        writer.finish(
            index_lib.document(bundles=writer.bundles, tensors=tensors, blobs=blobs, files=entries)
        )


def _collect(source: FileSource) -> tuple[list[_Item], list[FileEntry]]:
    """What there is to write, in order, and how the files are made of it."""
    elements = reading.read(source.contents()).elements
    items: list[_Item] = []
    entries: list[FileEntry] = []
    tensors = 0
    for blob, name in enumerate(source.files):
        path = source.root / name
        inside = None
        if not index_lib.is_safe_path(name):
            raise InputError(
                "name of a file", file=path, expected="one without a backslash", found=repr(name)
            )
        is_model = name in source.model
        if opened := _open_safetensors(path, is_model=is_model):
            head = np.frombuffer(opened.header, np.uint8)
            items.append(_Item(f"{name} header", head, True))
            known = elements if is_model else {}
            items += [_Item(t.name, t.values, False, known.get(t.name)) for t in opened.tensors]
            inside = tuple(range(tensors, tensors + len(opened.tensors)))
            tensors += len(inside)
        else:
            items.append(_Item(name, _map(path), True))
        entries.append(FileEntry(path=name, blob=blob, tensors=inside, model=is_model))
    return items, entries


def _open_safetensors(path: Path, *, is_model: bool) -> SafetensorsFile | None:
    """The file's tensors, or None if it is to be kept as bytes."""
    if path.suffix != ".safetensors":
        return None
    try:
        return safetensors.read(path)
    except InputError:
        if is_model:
            raise
        return None


def _map(path: Path) -> np.ndarray:
    empty = path.stat().st_size == 0
    return np.zeros(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, mode="r"))


def _fingerprint(source: FileSource) -> str:
    """Changes with any file of the source and with this release's format."""
    stats = [(source.root / name).stat() for name in source.files]
    state = [
        index_lib.VERSION,
        str(source.root.resolve()),
        [(n, s.st_size, s.st_mtime_ns) for n, s in zip(source.files, stats, strict=True)],
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(state).encode())


def _write(writer: Writer, items: list[_Item], progress: Progress | None) -> None:
    for number, header, chunks in writer.journal:
        items[number].header = items[number].header or header
        items[number].chunks += chunks
    numbers: dict[int, int] = {}

    def drafts() -> Iterator[coder.Draft]:
        for number, item in enumerate(items):
            if item.is_done:
                if progress:
                    progress(item.values.nbytes)
                continue
            draft = item.draft()
            numbers[id(draft)] = number
            yield draft

    for draft, chunks in coder.encode(drafts()):
        item = items[numbers[id(draft)]]
        item.header = index_lib.header_document(draft)
        for chunk, payload in chunks:
            place = writer.append(payload)
            written = index_lib.chunk_document(chunk, place, draft.coding)
            item.chunks.append(written)
            writer.record([numbers[id(draft)], item.header, [written]])
            if progress:
                progress(chunk.weights * item.values.itemsize)
    writer.flush()


def save(path: str | Path, packed: Any) -> None:
    """Writes a pytree as a compressed checkpoint.

    Args:
      path: where it will appear, whole or not at all.
      packed: a pytree of `CompressedTensor` or arrays; arrays are compressed. Dicts, lists, tuples
        and None come back as they are, any other node as a dict of its fields.

    Raises:
      InputError: two leaves whose dotted paths are the same.
      DestinationError: `path` exists or cannot be written.
    """
    leaves, tree = structure.describe(trees.compress(packed))
    names = [name for name, _ in leaves]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError("two leaves of the pytree have this path", tensor=twice)
    with writing(Path(path)) as writer:
        entries = []
        for name, leaf in leaves:
            chunks = []
            for item in pieces.coded_chunks(name, leaf):
                coder.check_payload(item)
                place = writer.append(item.payload)
                chunks.append(index_lib.chunk_document(item.chunk, place, item.coding))
                writer.record(None)
            entries.append(
                index_lib.entry_document(name, index_lib.header_document(leaf.header), chunks)
            )
        writer.flush()
        writer.finish(index_lib.document(bundles=writer.bundles, tensors=entries, tree=tree))
