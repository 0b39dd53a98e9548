"""What there is to write of a source, and how its files and stores are made of that."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers import drafting
from jentropy.errors import InputError
from jentropy.formats import ELEMENTS, GROUP_INDEX, ElementFormat, Format

from . import choosing, gguf_files, recorded
from .checkpoint import Tensor
from .contents import StoredArray, in_memory
from .entries import (
    PACKED_BITS,
    Blocks,
    FileEntry,
    Filler,
    Section,
    StoreEntry,
    WeightEntry,
    is_safe_path,
)
from .faults import reading
from .gguf_blocks import PACKINGS
from .gguf_files import GgufFile
from .item_tree import ARRAY, Leaf
from .items import Item
from .mapping import contiguous, mapped, sliced
from .orbax_source import OrbaxSource
from .remote import RemotePath
from .safetensors import SafetensorsFile
from .sources import FileSource, open_weights
from .unpacking import StoredCodes

MODE = 0o777  # bits that come back: no file runs as its owner
Elements = Mapping[tuple[Path, str], ElementFormat]  # by an array's file and name


def _elements(tensors: Iterable[Tensor]) -> Elements:
    """Element formats of the stored arrays that the archive can take apart by them."""
    return {
        (leaf.array.file, leaf.array.name): leaf.element
        for tensor in tensors
        if not tensor.number_format.is_plain
        for key, leaf in tensor.stored.items()
        if key != GROUP_INDEX and _fills(leaf)
    }


def _fills(codes: StoredCodes) -> bool:
    """Whether codes, of an element that the archive knows, fill the stored numbers evenly."""
    bits = codes.element.code_bits
    if ELEMENTS.get(codes.element.name) != codes.element:
        return False
    return bits in PACKED_BITS or bits == 8 * codes.array.dtype.itemsize


def collect(source: FileSource | OrbaxSource, *, strict: bool = False) -> Manifest:
    """What there is to write, in order, and how the files are made of it.

    Args:
      strict: see `open_checkpoint`.

    Raises:
      InputError: a name of a file that not every system has.
    """
    tensors = source.view(strict=strict, lenient=not strict).quantised
    manifest = Manifest(_elements(tensors))
    if isinstance(source, FileSource):
        names, shown, opened = source.files, source.shown, source.opened
    else:
        names, shown, opened = source.kept, frozenset[str](), {}
        manifest.add_stores(source)
    for name in names:
        path = source.root / name
        if not is_safe_path(name):
            raise InputError(
                "name of a file", file=path, expected="one without a backslash", found=repr(name)
            )
        manifest.add_file(name, path, opened.get(name) or _open_weights(path), name in shown)
    manifest.formats, manifest.weights = recorded.record(tensors, manifest.numbers)
    return manifest


class Manifest:
    """What there is to write, in order, and how the files and stores of a source are made of it.

    Args:
      elements: formats of the codes in stored arrays, where those are not their dtype's.

    Attributes:
      items: tensors and blobs, in the order in which they are written.
      tensors, blobs: which items are those.
      numbers: of the tensor that an array is, or has as its first field, by its file and name.
      formats, weights: what was recognised.
    """

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self.items: list[Item] = []
        self.tensors: list[int] = []
        self.blobs: list[int] = []
        self.files: list[FileEntry] = []
        self.stores: list[StoreEntry] = []
        self.tree: Any = None
        self.numbers: dict[tuple[Path, str], int] = {}
        self.formats: tuple[Format, ...] = ()
        self.weights: tuple[WeightEntry, ...] = ()

    def _add_blob(self, name: str, values: np.ndarray, path: Path) -> int:
        """Adds bytes; returns their number."""
        self.blobs.append(len(self.items))
        self.items.append(Item(name=name, array=in_memory(name, values, path), draft=drafting.blob))
        return len(self.blobs) - 1

    def _add_tensor(
        self,
        array: StoredArray,
        element: ElementFormat | None,
        leaf: Leaf | None = None,
        *,
        reads: bool = False,
    ) -> int:
        """Adds a tensor, one of a file or what Orbax stored as a leaf; returns its number."""
        reads = reads or leaf is not None or isinstance(array.file, RemotePath)
        leaf = leaf or ARRAY
        draft = partial(
            drafting.Original, element=element, numpy=not leaf.jax, scalar=leaf.scalar, key=leaf.key
        )
        self.tensors.append(len(self.items))
        self.items.append(Item(name=array.name, array=array, draft=draft, reads=reads))
        return len(self.tensors) - 1

    def _add_array(self, array: StoredArray, leaf: Leaf | None = None) -> int:
        """Adds an array that is one tensor; returns its number."""
        key = array.file, array.name
        number = self.numbers[key] = self._add_tensor(array, self._elements.get(key), leaf)
        return number

    def add_stores(self, source: OrbaxSource) -> None:
        """The arrays of an Orbax checkpoint, numbered as in its tree."""
        names = dict(reversed([(id(array), name) for name, array in source.named()]))
        for store in source.stores:
            arrays, others = [], []
            for zarr in store.arrays:
                name = names.get(id(zarr.array), f"{store.path}/{zarr.prefix}".strip("/"))
                leaf = source.leaves.get(len(self.tensors), ARRAY)
                number = self._add_array(replace(zarr.array, name=name), leaf)
                arrays.append((number, zarr.prefix, zarr.metadata))
            for key, value in store.others.items():
                blob = self._add_blob(store.path, np.frombuffer(value, np.uint8), source.root)
                others.append((key, blob))
            self.stores.append(
                StoreEntry(
                    path=store.path, ocdbt=store.ocdbt, arrays=tuple(arrays), others=tuple(others)
                )
            )
        self.tree = source.tree

    def add_file(
        self, name: str, path: Path, opened: SafetensorsFile | GgufFile | None, is_model: bool
    ) -> None:
        """A file's header, then its tensors and the bytes between, or all of it as bytes."""
        if opened is None:
            self._append(FileEntry(path=name, blob=self._add_blob(name, mapped(path), path)), path)
            return
        data = sliced(path)
        starts, parts = opened.starts, list[Section]()
        at = min(starts, default=data.size)
        blob = self._add_blob(f"{name} header", data[:at], path)
        for array, start in zip(opened.arrays, starts, strict=True):
            if start > at:
                parts.append(Filler(self._add_blob(f"{name} filler", data[at:start], path)))
            parts.append(self._add_blocks(array) if array.packing else self._add_array(array))
            at = start + array.nbytes
        if data.size > at:
            parts.append(Filler(self._add_blob(f"{name} filler", data[at:], path)))
        self._append(FileEntry(path=name, blob=blob, parts=tuple(parts), model=is_model), path)

    def _append(self, file: FileEntry, path: Path) -> None:
        if isinstance(path, RemotePath):  # which has neither
            self.files.append(file)
            return
        with reading(path):
            told = path.stat()
        mode = stat.S_IMODE(told.st_mode) & MODE
        self.files.append(replace(file, mode=mode, modified_ns=told.st_mtime_ns))

    def _add_blocks(self, array: StoredArray) -> Blocks:
        """The fields of blocks, each a tensor; of an unknown type the bytes as they are."""
        self.numbers[array.file, array.name] = len(self.tensors)
        packing = PACKINGS.get(array.packing)
        fields: list[tuple[StoredArray, ElementFormat | None]]
        if packing is None:
            name = f"{array.name}.bytes" if array.packing.endswith(gguf_files.BIG) else array.name
            fields = [(replace(array, name=name, packing=""), None)]
        else:
            fields = [
                (_of_field(f"{array.name}.{key}", part, array.file), packing.fields[key][1])
                for key, part in packing.split(array.read()).items()
            ]
        return Blocks(
            name=array.name,
            packing=array.packing,
            shape=array.shape,
            fields=tuple(
                self._add_tensor(field, element, reads=packing is not None)
                for field, element in fields
            ),
        )


def _of_field(name: str, values: np.ndarray, file: Path) -> StoredArray:
    """A field of blocks, whose bytes lie between those of others until it is read."""
    return replace(in_memory(name, values, file), read=partial(contiguous, values))


def _open_weights(path: Path) -> SafetensorsFile | GgufFile | None:
    """The tensors of a file beside the model, or None if it is to be kept as bytes."""
    if not choosing.is_weights(path.name):
        return None
    try:
        return open_weights(path)
    except InputError:
        return None
