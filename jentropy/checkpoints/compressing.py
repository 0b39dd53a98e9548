"""Checkpoints and pytrees into compressed checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from jentropy.containers import coder
from jentropy.containers.tensor import chunk_length
from jentropy.errors import InputError
from jentropy.formats import ElementFormat

from . import gguf_files, reading, safetensors
from . import index as index_lib
from .array_store import ZarrArray
from .contents import StoredArray
from .dialects import gguf
from .gguf_files import GgufFile
from .hub import resolve
from .index import Blocks, FileEntry, Filler, Part, StoreEntry
from .item_tree import ARRAY, Leaf
from .orbax_source import OrbaxSource, is_orbax, read_orbax
from .safetensors import SafetensorsFile
from .sources import FileSource, read_file_source
from .staging import refuse_existing
from .store import is_compressed_checkpoint
from .writer import Writer, writing

READ_BYTES = 1 << 29  # of arrays that are read ahead
Progress = Callable[[int], None]  # called with the number of source bytes done since the last call


@dataclass(slots=True)
class _Item:
    """A tensor or a blob to write, and what is known of it so far."""

    name: str
    values: np.ndarray | ZarrArray  # in memory, mapped, or unread
    is_blob: bool
    element: ElementFormat | None = None  # of the codes, if it is not the dtype's
    leaf: Leaf = ARRAY
    header: dict[str, Any] | None = None
    chunks: list[list[Any]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        expected = -(-self.values.size // chunk_length(tuple(self.values.shape)))
        return self.header is not None and len(self.chunks) == expected

    def draft(self) -> coder.Draft:
        skip = len(self.chunks)
        values = self.values.read() if isinstance(self.values, ZarrArray) else self.values
        if self.is_blob:
            return coder.blob(self.name, values, skip=skip)
        return coder.draft(
            self.name,
            values,
            element=self.element,
            numpy=not self.leaf.jax,
            scalar=self.leaf.scalar,
            key=self.leaf.key,
            skip=skip,
        )

    def entry(self) -> dict[str, Any]:
        assert self.header is not None
        return index_lib.entry_document(self.name, self.header, self.chunks)


def compress_checkpoint(
    src: str | Path,
    dst: str | Path,
    progress: Progress | None = None,
    *,
    step: int | None = None,
) -> None:
    """Compresses a checkpoint, with every file that lies beside its weights.

    Killed or interrupted work is taken up by the next call with the same arguments.

    Args:
      src: a safetensors file, a directory in Hugging Face form, what Orbax wrote (the root of a
        `CheckpointManager`, a step, an item), or `hf://owner/name`.
      dst: where the compressed checkpoint will appear, whole or not at all.
      progress: told of progress.
      step: the only step of a manager's root that is wanted; None: all of them.

    Raises:
      InputError: a source that cannot be read, by file and tensor.
      DestinationError: `dst` exists or cannot be written.
    """
    target = Path(dst)
    refuse_existing(target)
    source = resolve(src)
    if is_compressed_checkpoint(source):
        raise InputError("already a compressed checkpoint", file=source)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise InputError("destination lies inside the source", file=target)
    files = read_source(source, step)
    plan = _collect(files)
    items, fingerprint = plan.items, _fingerprint(files)
    with writing(target, fingerprint) as writer:
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
                files=plan.files,
                beside=files.beside(),
                tree=plan.tree,
                stores=plan.stores,
            )
        )


def read_source(source: Path, step: int | None = None) -> FileSource | OrbaxSource:
    """What a path holds, read without its arrays.

    Raises:
      InputError: what is there cannot be read; a step of what is no manager's root.
    """
    if is_orbax(source):
        return read_orbax(source, step)
    if step is not None:
        raise InputError(
            f"step {step}", file=source, expected="the root of a CheckpointManager", found="none"
        )
    return read_file_source(source)


def _collect(source: FileSource | OrbaxSource) -> _Plan:
    """What there is to write, in order, and how the files are made of it."""
    elements = reading.read(source.contents(), strict=False).elements
    plan = _Plan()
    model: tuple[str, ...] = ()
    if isinstance(source, FileSource):
        names, model = source.files, source.model
    else:
        plan.add_stores(source, elements)
        names = source.kept
    for name in names:
        path, is_model = source.root / name, name in model
        if not index_lib.is_safe_path(name):
            raise InputError(
                "name of a file", file=path, expected="one without a backslash", found=repr(name)
            )
        if is_model and path.suffix == gguf_files.SUFFIX:
            plan.add_gguf(name, gguf_files.read(path))
        elif opened := _open_safetensors(path, is_model=is_model):
            plan.add_safetensors(name, opened, elements if is_model else {}, is_model=is_model)
        else:
            blob = plan.add_blob(name, map_file(path))
            plan.files.append(FileEntry(path=name, blob=blob))
    return plan


class _Plan:
    """Items and files, collected in order."""

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self.files: list[FileEntry] = []
        self.stores: list[StoreEntry] = []
        self.tree: Any = None
        self._tensors = self._blobs = 0

    def add_blob(self, name: str, values: np.ndarray) -> int:
        """Adds bytes; returns their number."""
        self.items.append(_Item(name, values, True))
        self._blobs += 1
        return self._blobs - 1

    def add_tensor(
        self,
        name: str,
        values: np.ndarray | ZarrArray,
        element: ElementFormat | None,
        leaf: Leaf = ARRAY,
    ) -> int:
        """Adds a tensor; returns its number."""
        self.items.append(_Item(name, values, False, element, leaf))
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

    def add_stores(self, source: OrbaxSource, elements: Mapping[str, ElementFormat]) -> None:
        """The arrays of an Orbax checkpoint, numbered as in its tree."""
        names = dict(reversed([(id(array), name) for name, array in source.named()]))
        for store in source.stores:
            arrays = []
            for array in store.arrays:
                name = names.get(id(array), f"{store.path}/{array.prefix}".strip("/"))
                leaf = source.leaves.get(self._tensors, ARRAY)
                number = self.add_tensor(name, array, elements.get(name), leaf)
                arrays.append((number, array.prefix, array.metadata))
            others = [
                (key.decode("utf-8", "surrogateescape"), self.add_blob(store.path, _bytes(value)))
                for key, value in store.others.items()
            ]
            self.stores.append(
                StoreEntry(
                    path=store.path,
                    ocdbt=store.ocdbt,
                    arrays=tuple(arrays),
                    others=tuple(others),
                )
            )
        self.tree = source.tree

    def add_gguf(self, path: str, opened: GgufFile) -> None:
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
        self.files.append(FileEntry(path=path, blob=blob, parts=tuple(parts), model=True))

    def _add_blocks(self, array: StoredArray, values: np.ndarray) -> Blocks:
        """The fields of blocks, each a tensor; of an unknown type the bytes as they are."""
        packing = gguf.PACKINGS.get(array.packing)
        if packing is None:
            fields: tuple[int, ...] = (self.add_tensor(array.name, values, None),)
        else:
            fields = tuple(
                self.add_tensor(f"{array.name}.{key}", part, packing.fields[key][1])
                for key, part in packing.split(values).items()
            )
        return Blocks(name=array.name, packing=array.packing, shape=array.shape, fields=fields)


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


def map_file(path: Path) -> np.ndarray:
    """A file's bytes, mapped."""
    empty = path.stat().st_size == 0
    return np.zeros(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, mode="r"))


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def _fingerprint(source: FileSource | OrbaxSource) -> str:
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
    for item in items:
        if item.is_done and progress:
            progress(item.values.nbytes)
    waiting = [number for number, item in enumerate(items) if not item.is_done]
    numbers: dict[int, int] = {}

    def drafts() -> Iterator[coder.Draft]:
        for group in _groups(items, waiting):
            made = coder.drafts(items[number].draft for number in group)
            for number, draft in zip(group, made, strict=True):
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


def _groups(items: list[_Item], numbers: list[int]) -> Iterator[list[int]]:
    """Numbers of items in groups of which at most READ_BYTES are to be read, not mapped."""
    group: list[int] = []
    held = 0
    for number in numbers:
        values = items[number].values
        size = values.nbytes if isinstance(values, ZarrArray) else 0
        if group and held + size > READ_BYTES:
            yield group
            group, held = [], 0
        group.append(number)
        held += size
    if group:
        yield group
