"""What a compressed checkpoint holds: the records of its index.

A record that is there is sound: `Index` checks what refers to what.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jentropy.codecs import stored
from jentropy.containers.tensor import TensorHeader, first_twice
from jentropy.errors import CorruptError
from jentropy.formats import Format

from . import structure

VERSION = 2  # whose index lies there twice, and whose metadata has hashes of all files
WITH_BASE = 3  # some of whose tensors are told by those of another checkpoint
# Names that are no files on Windows, whatever follows behind a dot.
DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{n}{i}" for n in ("COM", "LPT") for i in "0123456789¹²³"),
}
PACKED_BITS = (4, 8)  # of codes that lie several to a number


@dataclass(frozen=True, slots=True)
class Entry:
    """An archived tensor or blob of the checkpoint."""

    name: str
    header: TensorHeader
    places: tuple[tuple[int, int], ...]  # bundle and offset in it, of each chunk's payload
    base: int | None = None  # number of the base's tensor by which its codes are told

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it holds."""
        return self.header.shape

    @property
    def dtype(self) -> str:
        """NumPy's name of that of what it holds."""
        return self.header.dtype

    @property
    def rows(self) -> Iterable[tuple[int, ...]]:
        """Of each chunk bundle, offset, bytes, and its hashes, once if they are the same."""
        is_stored = self.header.coding.codec == stored.NAME
        for place, chunk in zip(self.places, self.header.chunks, strict=True):
            hashes = (chunk.payload_hash,) if is_stored else (chunk.payload_hash, chunk.codes_hash)
            yield (*place, chunk.bytes, *hashes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A stored array whose rows are blocks of several fields, each a tensor of its own (GGUF).

    Invariant: the fields have as many rows; the array is their rows' bytes side by side.
    """

    name: str
    packing: str
    shape: tuple[int, ...]  # uint8
    fields: tuple[int, ...]  # numbers of tensors


@dataclass(frozen=True, slots=True)
class Filler:
    """Bytes between tensors: a blob's number."""

    blob: int


Section = int | Blocks | Filler  # of a file; an integer is the number of a tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of the source.

    A safetensors or GGUF file is its header (an entry of `blobs`) and its sections in order; any
    other file is one blob.
    """

    path: str  # relative, with slashes
    blob: int
    parts: tuple[Section, ...] | None = None  # None: a file of bytes
    model: bool = False  # some of its tensors are the model's weights
    mode: int | None = None  # who may do what with it, POSIX's nine bits
    modified_ns: int | None = None  # since 1970, in UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntry:
    """A folder of arrays of an Orbax checkpoint; its other files are `files`."""

    path: str  # relative, with slashes; empty for the checkpoint itself
    ocdbt: bool  # an OCDBT store, not files
    arrays: tuple[
        tuple[int, str, Mapping[str, Any]], ...
    ]  # tensor, prefix of keys, zarr's metadata
    others: tuple[tuple[str, int], ...] = ()  # key and blob; bytes that are no UTF-8 as surrogates


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEntry:
    """An array that holds the codes or a parameter of a weight.

    Attributes:
      array: number of a tensor; of `Blocks` that of their first field.
      unpack: name of what makes codes of it, in `unpacking.UNPACKINGS`.
      arguments: of that, as JSON.
    """

    array: int
    unpack: str = "whole"
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEntry:
    """A weight that was recognised when the checkpoint was written.

    Its name is that in its component: several components may have one of this name.
    """

    name: str
    dialect: str
    version: int  # of the dialect
    format: int  # its number in `Index.formats`
    shape: tuple[int, ...]
    parts: Mapping[str, PartEntry]  # `code`, and each parameter by name
    settled: tuple[int, ...] = ()  # arrays that belong to it and add nothing to its values


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Everything that a compressed checkpoint holds.

    A checkpoint of `files` gives files back; one of `stores` an Orbax checkpoint; one with a `tree`
    a pytree, whose leaves are numbers of tensors.

    Invariants: what a number or a place points to is there; files, stores, weights and the arrays
    of a file differ in their names.

    Raises:
      CorruptError: an invariant that does not hold, by its place.
    """

    bundles: tuple[int, ...]  # bytes of each
    tensors: tuple[Entry, ...]
    blobs: tuple[Entry, ...] = ()
    files: tuple[FileEntry, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)  # texts that lay beside a single file
    tree: Any = None  # a structure, see `structure`
    stores: tuple[StoreEntry, ...] = ()
    formats: tuple[Format, ...] = ()  # of the weights and the tree
    version: int = VERSION
    weights: tuple[WeightEntry, ...] = ()
    base: int | None = None  # digest of the base's tensors by which some of these are told

    def __post_init__(self) -> None:
        for entries in (self.tensors, self.blobs):
            if not _lie_within(getattr(entries, "ends", None), self.bundles):
                for entry in entries:
                    _check_places(entry, self.bundles)
        for place, numbers, count in _pointers(self):
            if (number := max(numbers, default=-1)) >= count:
                raise CorruptError(place, expected=f"a number below {count}", found=number)
        groups = [f.parts or () for f in self.files]
        for part in (part for parts in groups for part in parts if isinstance(part, Blocks)):
            _check_rows(part, [self.tensors[i].header for i in part.fields])
        if self.is_pytree:
            groups = [tuple(range(len(self.tensors)))]
        for parts in groups:
            _check_names("tensors", (self.name_of(p) for p in parts if not isinstance(p, Filler)))
        _check_names("files", (f.path for f in self.files))
        _check_names("stores", (s.path for s in self.stores))
        told = any(entry.base is not None for entry in self.tensors)
        if told != (self.base is not None):
            raise CorruptError(
                "base", expected="a digest of it, if tensors have one", found=self.base
            )
        _check_names("weights", (f"array {w.parts['code'].array}" for w in self.weights))

    @property
    def tree_json(self) -> Any:
        """The tree as JSON."""
        return structure.to_json(self.tree, {f: number for number, f in enumerate(self.formats)})

    @property
    def is_pytree(self) -> bool:
        """Whether the source was a pytree, not files."""
        return not (self.files or self.stores)

    @property
    def has_tree(self) -> bool:
        """Whether the model is the leaves of a tree, not arrays of files."""
        return bool(self.stores) or not self.files

    def name_of(self, array: int | Blocks) -> str:
        """Name of an array of a file."""
        return array.name if isinstance(array, Blocks) else self.tensors[array].name


def _lie_within(ends: np.ndarray | None, bundles: tuple[int, ...]) -> bool:
    """Whether the ends of what bundles hold are known to lie in them."""
    if ends is None or len(ends) > len(bundles):
        return False
    return all(end <= size for end, size in zip(ends.tolist(), bundles, strict=False))


def _check_places(entry: Entry, bundles: tuple[int, ...]) -> None:
    for (bundle, offset), chunk in zip(entry.places, entry.header.chunks, strict=True):
        if bundle >= len(bundles) or offset + chunk.bytes > bundles[bundle]:
            size = f"{bundles[bundle]} bytes" if bundle < len(bundles) else "none"
            raise CorruptError(
                "chunk",
                tensor=entry.name,
                expected=f"within bundle {bundle} of {size}",
                found=f"{chunk.bytes} bytes from {offset} on",
            )


def _pointers(index: Index) -> Iterator[tuple[str, list[int], int]]:
    """Numbers that point to something: where they stand, they, and how many of it there are."""
    tensors, blobs, formats = len(index.tensors), len(index.blobs), len(index.formats)
    for f in index.files:
        fillers = [part.blob for part in f.parts or () if isinstance(part, Filler)]
        yield f"{f.path} blobs", [f.blob, *fillers], blobs
        yield f"{f.path} parts", [n for part in f.parts or () for n in fields_of(part)], tensors
    for store in index.stores:
        yield f"{store.path} arrays", [number for number, _, _ in store.arrays], tensors
        yield f"{store.path} others", [number for _, number in store.others], blobs
    nodes = [node for _, node in structure.walk(index.tree)]
    yield "tree", [node.number for node in nodes if isinstance(node, structure.Stored)], tensors
    for weight in index.weights:
        arrays = [part.array for part in weight.parts.values()]
        yield f"{weight.name} format", [weight.format], formats
        yield f"{weight.name} parts", [*arrays, *weight.settled], tensors


def fields_of(section: Section) -> tuple[int, ...]:
    """Numbers of the tensors that a section of a file is made of."""
    if isinstance(section, Filler):
        return ()
    return section.fields if isinstance(section, Blocks) else (section,)


def _check_rows(blocks: Blocks, headers: list[TensorHeader]) -> None:
    rows = {header.shape[:1] for header in headers}
    size = sum(header.raw_bytes for header in headers)
    if len(rows) != 1 or rows == {()} or not blocks.shape or size != math.prod(blocks.shape):
        raise CorruptError(
            f"{blocks.name} fields",
            expected=f"rows of {list(blocks.shape)} bytes",
            found=list(blocks.fields),
        )


def _check_names(place: str, names: Iterable[str]) -> None:
    if (twice := first_twice(names)) is not None:
        raise CorruptError(place, expected="every name once", found=f"{twice!r:.60}")


def is_safe_path(path: str, *, windows: bool = os.name == "nt") -> bool:
    """Whether a file of this relative path may be written below a directory.

    There is one way to spell it: no part is empty, or `.`.
    """
    try:
        path.encode("utf-8", "surrogateescape")  # as names that are no UTF-8 are read
    except UnicodeEncodeError:
        return False
    parts = path.split("/")
    if {"", ".", ".."} & {*parts} or set(path) & set("\\\0"):
        return False
    return not windows or all(map(_windows_has, parts))


def _windows_has(name: str) -> bool:
    """Whether a name stands for a file on Windows, and for one of that name."""
    stem = name.split(".")[0].rstrip(" ").upper()
    bad = set(name) & set('<>:"|?*') or name[-1] in ". " or min(name) < " "
    return not (bad or stem in DEVICES)
