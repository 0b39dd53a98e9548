"""Checkpoints and pytrees into compressed checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from jentropy.containers import coder, trees
from jentropy.containers.tensor import chunk_length
from jentropy.errors import InputError
from jentropy.formats import ElementFormat

from . import choosing, gguf_files, orbax
from . import index as index_lib
from .contents import StoredArray
from .dialects import gguf
from .gguf_files import GgufFile
from .hub import resolve
from .index import Blocks, FileEntry, Filler, Part
from .progress import Progress, expect
from .safetensors import SafetensorsFile
from .saving import save
from .sources import FileSource, open_weights, read_file_source
from .staging import refuse_existing
from .store import is_compressed_checkpoint, is_orbax_checkpoint
from .writer import Writer, other_than_compressed, writing


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

    @property
    def done_bytes(self) -> int:
        """Bytes of the chunks that are there."""
        done = len(self.chunks) * chunk_length(tuple(self.values.shape))
        return min(done * self.values.itemsize, self.values.nbytes)

    def draft(self) -> coder.Draft:
        skip = len(self.chunks)
        if self.is_blob:
            return coder.blob(self.name, self.values, skip=skip)
        return coder.draft(self.name, self.values, element=self.element, skip=skip)

    def entry(self) -> dict[str, Any]:
        assert self.header is not None
        return index_lib.entry_document(self.name, self.header, self.chunks)


def compress_checkpoint(
    src: str | Path,
    dst: str | Path,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    strict: bool = False,
) -> None:
    """Compresses a checkpoint, with every file that lies beside its weights.

    Killed or interrupted work is taken up by the next call with the same arguments.

    Args:
      src: a safetensors file, a directory in Hugging Face form, an Orbax checkpoint (which is read
        whole, and not taken up), or `hf://owner/name`.
      dst: where the compressed checkpoint will appear, whole or not at all.
      progress: called with the bytes done since the last call; see `progress.Progress`.
      overwrite: whether a compressed checkpoint that is there is replaced, once this one is done.
      strict: see `open_checkpoint`; every byte is kept either way.

    Raises:
      InputError: a source that cannot be read, by file and tensor.
      DestinationError: `dst` exists or cannot be written.
    """
    target = Path(dst)
    refuse_existing(target, other_than_compressed if overwrite else None)
    source = resolve(src)
    if overwrite and source.resolve().is_relative_to(target.resolve()):
        raise InputError("source lies inside the destination", file=source)
    if is_compressed_checkpoint(source):
        raise InputError("already a compressed checkpoint", file=source)
    if source.is_dir() and is_orbax_checkpoint(source):
        save(target, trees.compress(orbax.load_tree(source)), overwrite=overwrite)
        return
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise InputError("destination lies inside the source", file=target)
    files = read_file_source(source)
    items, entries = _collect(files, strict=strict)
    fingerprint = _fingerprint(files)
    with writing(target, fingerprint, overwrite=overwrite) as writer:
        _write(writer, items, progress)
        if _fingerprint(files) != fingerprint:
            raise InputError("files changed while they were being compressed", file=source)
        tensors = [item.entry() for item in items if not item.is_blob]
        blobs = [item.entry() for item in items if item.is_blob]
        writer.finish(
            index_lib.document(
                bundles=writer.bundles,
                tensors=tensors,
                blobs=blobs,
                files=entries,
                beside=files.beside(),
            )
        )


def _collect(source: FileSource, *, strict: bool) -> tuple[list[_Item], list[FileEntry]]:
    """What there is to write, in order, and how the files are made of it."""
    elements, shown = source.view(strict=strict, lenient=not strict).elements, source.shown
    plan = _Plan()
    for name in source.files:
        path, is_model = source.root / name, name in shown
        if not index_lib.is_safe_path(name):
            raise InputError(
                "name of a file", file=path, expected="one without a backslash", found=repr(name)
            )
        opened = source.opened.get(name) or _open_weights(path)
        if isinstance(opened, GgufFile):
            plan.add_gguf(name, opened, is_model=is_model)
        elif opened is not None:
            plan.add_safetensors(name, opened, elements.get(name, {}), is_model=is_model)
        else:
            blob = plan.add_blob(name, map_file(path))
            plan.files.append(FileEntry(path=name, blob=blob))
    return plan.items, plan.files


class _Plan:
    """Items and files, collected in order."""

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self.files: list[FileEntry] = []
        self._tensors = self._blobs = 0

    def add_blob(self, name: str, values: np.ndarray) -> int:
        """Adds bytes; returns their number."""
        self.items.append(_Item(name, values, True))
        self._blobs += 1
        return self._blobs - 1

    def add_tensor(self, name: str, values: np.ndarray, element: ElementFormat | None) -> int:
        """Adds a tensor; returns its number."""
        self.items.append(_Item(name, values, False, element))
        self._tensors += 1
        return self._tensors - 1

    def add_safetensors(
        self,
        path: str,
        opened: SafetensorsFile,
        elements: Mapping[str, ElementFormat],
        *,
        is_model: bool,
    ) -> None:
        """A header and its tensors."""
        blob = self.add_blob(f"{path} header", np.frombuffer(opened.header, np.uint8))
        parts = tuple(
            self.add_tensor(t.name, t.values, elements.get(t.name)) for t in opened.tensors
        )
        self.files.append(FileEntry(path=path, blob=blob, parts=parts, model=is_model))

    def add_gguf(self, path: str, opened: GgufFile, *, is_model: bool) -> None:
        """A header, then tensors and the bytes between; blocks are taken apart."""
        data, parts, at = map_file(opened.path), list[Part](), 0
        blob = self.add_blob(f"{path} header", data[: min(opened.starts, default=data.size)])
        for array, start in zip(opened.arrays, opened.starts, strict=True):
            if parts and start > at:
                parts.append(Filler(self.add_blob(f"{path} filler", data[at:start])))
            values = array.read()
            if array.packing:
                parts.append(self._add_blocks(array, values))
            else:
                parts.append(self.add_tensor(array.name, values, None))
            at = start + values.nbytes
        if parts and data.size > at:
            parts.append(Filler(self.add_blob(f"{path} filler", data[at:])))
        self.files.append(FileEntry(path=path, blob=blob, parts=tuple(parts), model=is_model))

    def _add_blocks(self, array: StoredArray, values: np.ndarray) -> Blocks:
        """The fields of blocks, each a tensor; of an unknown type the bytes as they are."""
        packing = gguf.PACKINGS.get(array.packing)
        if packing is None:
            turned = array.packing.endswith(gguf_files.BIG)
            name = f"{array.name}.bytes" if turned else array.name
            fields: tuple[int, ...] = (self.add_tensor(name, values, None),)
        else:
            fields = tuple(
                self.add_tensor(f"{array.name}.{key}", part, packing.fields[key][1])
                for key, part in packing.split(values).items()
            )
        return Blocks(name=array.name, packing=array.packing, shape=array.shape, fields=fields)


def _open_weights(path: Path) -> SafetensorsFile | GgufFile | None:
    """The tensors of a file beside the model, or None if it is to be kept as bytes."""
    if not choosing.is_weights(path.name):
        return None
    try:
        return open_weights(path)
    except InputError:
        return None


def map_file(path: Path) -> np.ndarray:
    """A file's bytes, mapped."""
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
    total = sum(item.values.nbytes for item in items)
    expect(progress, total, done=sum(item.done_bytes for item in items))
    waiting = [number for number, item in enumerate(items) if not item.is_done]
    numbers: dict[int, int] = {}

    def drafts() -> Iterator[coder.Draft]:
        made = coder.drafts(items[number].draft for number in waiting)
        for number, draft in zip(waiting, made, strict=True):
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
