"""What there is to write of a source, and how its files and stores are made of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers import coder
from jentropy.containers.tensor import Chunk
from jentropy.errors import InputError
from jentropy.formats import GROUP_INDEX, ElementFormat, Format

from . import choosing, gguf_files, recorded
from . import index as index_lib
from .array_store import ZarrArray
from .checkpoint import Tensor
from .contents import StoredArray
from .gguf_blocks import PACKINGS
from .gguf_files import GgufFile
from .index import Blocks, Entry, FileEntry, Filler, Section, StoreEntry, WeightEntry
from .item_tree import ARRAY, Leaf
from .orbax_source import OrbaxSource
from .safetensors import SafetensorsFile
from .sources import FileSource, open_weights
from .unpacking import StoredCodes


@dataclass(slots=True)
class Item:
    """A tensor or a blob to write, and what is known of it so far."""

    name: str
    values: np.ndarray | ZarrArray  # in memory, mapped, or unread
    is_blob: bool
    element: ElementFormat | None = None  # of the codes, if it is not the dtype's
    leaf: Leaf = ARRAY
    chunks: list[tuple[tuple[int, int], Chunk]] = field(default_factory=list)  # and their places
    entry: Entry | None = None  # once all of them are there

    @property
    def done_bytes(self) -> int:
        """Bytes of the chunks that are there."""
        return sum(chunk.weights for _, chunk in self.chunks) * self.values.dtype.itemsize

    def finish(self, draft: coder.Draft) -> None:
        """Makes the entry, if the chunks are all there."""
        if len(self.chunks) * draft.chunk_weights >= self.values.size:
            header = draft.header([chunk for _, chunk in self.chunks])
            self.entry = Entry(self.name, header, tuple(place for place, _ in self.chunks))

    def draft(self) -> coder.Draft:
        """What the coder makes of it, read if it has to be."""
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


Elements = Mapping[tuple[Path, str], ElementFormat]  # by an array's file and name


def _elements(tensors: Iterable[Tensor]) -> Elements:
    """Element formats of the stored arrays that the archive can take apart by them."""
    return {
        (leaf.array.file, leaf.array.name): leaf.element
        for tensor in tensors
        if tensor.number_format.parameters
        for key, leaf in tensor.stored.items()
        if key != GROUP_INDEX and _fills(leaf)
    }


def _fills(codes: StoredCodes) -> bool:
    """Whether codes fill the stored numbers evenly."""
    bits = codes.element.code_bits
    return bits in index_lib.PACKED_BITS or bits == 8 * codes.array.dtype.itemsize


def collect(source: FileSource | OrbaxSource, *, strict: bool = False) -> Plan:
    """What there is to write, in order, and how the files are made of it.

    Args:
      strict: see `open_checkpoint`.

    Raises:
      InputError: a name of a file that not every system has.
    """
    tensors = source.view(strict=strict, lenient=not strict).tensors
    elements, plan = _elements(tensors), Plan()
    shown: frozenset[str] = frozenset()
    opened_files: Mapping[str, SafetensorsFile | GgufFile] = {}
    if isinstance(source, FileSource):
        names, shown, opened_files = source.files, source.shown, source.opened
    else:
        names = source.kept
        plan.add_stores(source, elements)
    for name in names:
        path, is_model = source.root / name, name in shown
        if not index_lib.is_safe_path(name):
            raise InputError(
                "name of a file", file=path, expected="one without a backslash", found=repr(name)
            )
        opened = opened_files.get(name) or _open_weights(path)
        if isinstance(opened, GgufFile):
            plan.add_gguf(name, opened, is_model=is_model)
        elif opened is not None:
            plan.add_safetensors(name, opened, elements, is_model=is_model)
        else:
            blob = plan.add_blob(name, map_file(path))
            plan.files.append(FileEntry(path=name, blob=blob))
    plan.formats, plan.weights = recorded.record(tensors, plan.numbers)
    return plan


class Plan:
    """Items, files and stores, collected in order.

    Attributes:
      numbers: of the tensor that an array is, or has as its first field, by its file and name.
      formats, weights: what was recognised.
    """

    def __init__(self) -> None:
        self.numbers: dict[tuple[Path, str], int] = {}
        self.formats: tuple[Format, ...] = ()
        self.weights: tuple[WeightEntry, ...] = ()
        self.items: list[Item] = []
        self.files: list[FileEntry] = []
        self.stores: list[StoreEntry] = []
        self.tree: Any = None
        self._tensors = self._blobs = 0

    def add_blob(self, name: str, values: np.ndarray) -> int:
        """Adds bytes; returns their number."""
        self.items.append(Item(name, values, True))
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
        self.items.append(Item(name, values, False, element, leaf))
        self._tensors += 1
        return self._tensors - 1

    def add_safetensors(
        self,
        path: str,
        opened: SafetensorsFile,
        elements: Elements,
        *,
        is_model: bool,
    ) -> None:
        """A header and its tensors."""
        blob = self.add_blob(f"{path} header", np.frombuffer(opened.header, np.uint8))
        parts = []
        for array in opened.arrays:
            key = array.file, array.name
            self.numbers[key] = self.add_tensor(array.name, array.read(), elements.get(key))
            parts.append(self.numbers[key])
        self.files.append(FileEntry(path=path, blob=blob, parts=tuple(parts), model=is_model))

    def add_stores(self, source: OrbaxSource, elements: Elements) -> None:
        """The arrays of an Orbax checkpoint, numbered as in its tree."""
        names = dict(reversed([(id(array), name) for name, array in source.named()]))
        for store in source.stores:
            arrays = []
            for array in store.arrays:
                name = names.get(id(array), f"{store.path}/{array.prefix}".strip("/"))
                leaf = source.leaves.get(self._tensors, ARRAY)
                key = array.file, name
                number = self.numbers[key] = self.add_tensor(name, array, elements.get(key), leaf)
                arrays.append((number, array.prefix, array.metadata))
            others = []
            for key, value in store.others.items():
                blob = self.add_blob(store.path, np.frombuffer(value, np.uint8))
                others.append((key.decode("utf-8", "surrogateescape"), blob))
            self.stores.append(
                StoreEntry(
                    path=store.path,
                    ocdbt=store.ocdbt,
                    arrays=tuple(arrays),
                    others=tuple(others),
                )
            )
        self.tree = source.tree

    def add_gguf(self, path: str, opened: GgufFile, *, is_model: bool) -> None:
        """A header, then tensors and the bytes between; blocks are taken apart."""
        data, parts, at = map_file(opened.path), list[Section](), 0
        blob = self.add_blob(f"{path} header", data[: min(opened.starts, default=data.size)])
        for array, start in zip(opened.arrays, opened.starts, strict=True):
            if parts and start > at:
                parts.append(Filler(self.add_blob(f"{path} filler", data[at:start])))
            values = array.read()
            self.numbers[array.file, array.name] = self._tensors
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
        packing = PACKINGS.get(array.packing)
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
