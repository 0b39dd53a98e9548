"""The index of a compressed checkpoint: what its bundles hold, as JSON.

FORMAT.md in `jentropy/containers` describes every key. Reading trusts nothing: whatever is missing,
of the wrong type or out of range is a CorruptError that names it.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jentropy.codecs import CODECS, Coding, stored
from jentropy.containers.coder import Draft
from jentropy.containers.tensor import (
    MAX_DIMENSIONS,
    MAX_SIZE,
    Chunk,
    TensorHeader,
    chunk_length,
    dtype_named,
    first_twice,
    is_shape,
)
from jentropy.errors import CorruptError, InputError, UnsupportedError
from jentropy.formats import ELEMENTS, RAW, ElementFormat

VERSION = 1
PACKED_BITS = (4, 8)  # of codes that lie several to a number
MAX_BYTES = 1 << 31  # of JSON: that of some millions of tensors
MAX_RATIO, SLACK_BYTES = 200, 1 << 20  # of JSON to a deflated index; real ones have 20
HASH = re.compile("[0-9a-f]{16}")
KEY = "jentropy"  # names the version, here and in the custom metadata


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """A chunk and where its payload lies."""

    chunk: Chunk
    bundle: int
    offset: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An archived tensor or blob of the checkpoint."""

    name: str
    header: TensorHeader
    chunks: tuple[ChunkRef, ...]


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


Part = int | Blocks | Filler  # an integer is the number of a tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of the source.

    A safetensors or GGUF file is its header (an entry of `blobs`) and its parts in order; any other
    file is one blob.
    """

    path: str  # relative, with slashes
    blob: int
    parts: tuple[Part, ...] | None = None  # None: a file of bytes
    model: bool = False  # some of its tensors are the model's weights


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
class Index:
    """Everything that a compressed checkpoint holds.

    A checkpoint of `files` gives files back; one of `stores` an Orbax checkpoint; one with a `tree`
    a pytree, whose leaves are numbers of tensors.
    """

    bundles: tuple[int, ...]  # bytes of each
    tensors: tuple[Entry, ...]
    blobs: tuple[Entry, ...] = ()
    files: tuple[FileEntry, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)  # texts that lay beside a single file
    tree: Any = None
    stores: tuple[StoreEntry, ...] = ()

    @property
    def has_tree(self) -> bool:
        """Whether the model is the leaves of a tree, not arrays of files."""
        return bool(self.stores) or not self.files


def document(
    *,
    bundles: Sequence[int],
    tensors: Sequence[dict[str, Any]],
    blobs: Sequence[dict[str, Any]] = (),
    files: Sequence[FileEntry] = (),
    beside: Mapping[str, str] | None = None,
    tree: Any = None,
    stores: Sequence[StoreEntry] = (),
) -> bytes:
    """The index as it is stored: compact JSON in ASCII, deflated.

    Args:
      bundles: bytes of each bundle.
      tensors, blobs: `entry_document`s.
    """
    content = {
        KEY: VERSION,
        "bundles": list(bundles),
        "files": [
            {
                "path": f.path,
                "blob": f.blob,
                **({} if f.parts is None else {"parts": [_part_document(p) for p in f.parts]}),
                **({"model": True} if f.model else {}),
            }
            for f in files
        ],
        "blobs": list(blobs),
        "tensors": list(tensors),
    }
    if beside:
        content["beside"] = dict(beside)
    if tree is not None:
        content["tree"] = tree
    if stores:
        content["stores"] = [
            {
                "path": s.path,
                "ocdbt": s.ocdbt,
                "arrays": [[number, prefix, metadata] for number, prefix, metadata in s.arrays],
                **({"others": [list(other) for other in s.others]} if s.others else {}),
            }
            for s in stores
        ]
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)


def _part_document(part: Part) -> Any:
    if isinstance(part, int):
        return part
    if isinstance(part, Filler):
        return {"blob": part.blob}
    return {
        "name": part.name,
        "packing": part.packing,
        "shape": list(part.shape),
        "fields": list(part.fields),
    }


def entry_document(
    name: str, header: dict[str, Any], chunks: Sequence[list[Any]]
) -> dict[str, Any]:
    """A tensor's or blob's part of the index, of `header_document` and `chunk_document`s."""
    return {"name": name, **header, "chunks": list(chunks)}


def header_document(header: TensorHeader | Draft) -> dict[str, Any]:
    """Everything that is said of a tensor but its chunks."""
    content: dict[str, Any] = {
        "shape": list(header.shape),
        "dtype": header.dtype,
        "format": header.format,
        "codec": header.coding.codec,
    }
    if header.coding.head:
        content["head"] = base64.b64encode(header.coding.head).decode()
    content["entropy_bits"] = header.entropy_bits
    if header.joint_entropy_bits is not None:
        content["joint_entropy_bits"] = header.joint_entropy_bits
    if not header.numpy:
        content["jax"] = True
    if header.scalar:
        content["scalar"] = True
    if header.key:
        content["key"] = header.key
    return content


def chunk_document(chunk: Chunk, place: tuple[int, int], coding: Coding) -> list[Any]:
    """[bundle, offset, bytes, hash of the payload, hash of the codes unless they are the same]."""
    hashes = [f"{chunk.payload_hash:016x}"]
    if coding.codec != stored.NAME:
        hashes.append(f"{chunk.codes_hash:016x}")
    return [*place, chunk.bytes, *hashes]


def is_safe_path(path: str) -> bool:
    """Whether a file of this relative path may be written below a directory, on any system."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not (path.startswith("/") or ".." in parts or set(path) & set("\\\0"))


class _Reader:
    """Typed access to parsed JSON; every complaint names the place."""

    def __init__(self, file: Path):
        self.file = file

    def fail(self, where: str, expected: str, found: Any) -> CorruptError:
        return CorruptError(
            f"index: {where}", file=self.file, expected=expected, found=f"{found!r:.60}"
        )

    def get(self, parent: dict, key: str, kind: type, where: str, default: Any = ...) -> Any:
        value = parent.get(key, default)
        if value is ... or (
            value is not default
            and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool))
        ):
            raise self.fail(f"{where} {key}", kind.__name__, parent.get(key))
        return value

    def size(self, value: Any, where: str, below: float = math.inf) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
            raise self.fail(where, f"an integer from 0 below {below}", value)
        return value

    def objects(self, parent: dict, key: str) -> list[dict]:
        items = self.get(parent, key, list, "")
        for item in items:
            if not isinstance(item, dict):
                raise self.fail(key, "objects", item)
        return items

    def unique(self, names: list[str], where: str) -> None:
        if (twice := first_twice(names)) is not None:
            raise self.fail(where, "every name once", twice)


def from_bytes(data: bytes, file: Path) -> Index:
    """Reads and checks an index, as it is stored.

    Raises:
      CorruptError, UnsupportedError: see `from_json`.
    """
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, min(MAX_BYTES, SLACK_BYTES + MAX_RATIO * len(data)))
    except zlib.error as error:
        raise CorruptError(f"index is not deflated: {error}", file=file) from error
    if not inflater.eof or inflater.unused_data:
        raise CorruptError(
            "index", file=file, expected="JSON in proportion, and nothing after", found="others"
        )
    return from_json(text, file)


def from_json(text: bytes, file: Path) -> Index:
    """Reads and checks the JSON of an index.

    Args:
      file: where it was read, for messages.

    Raises:
      CorruptError: anything that is not as FORMAT.md says.
      UnsupportedError: another version, codec, format or dtype, by name.
    """
    reader = _Reader(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"index is no JSON: {error}", file=file) from error
    if not isinstance(content, dict):
        raise reader.fail("content", "an object", content)
    version = content.get(KEY)
    if type(version) is not int or version != VERSION:
        raise UnsupportedError(
            "version of the compressed checkpoint",
            file=file,
            expected=f"{VERSION} or lower",
            found=f"{version!r:.40}",
            hint="a newer jentropy wrote it",
        )
    bundles = tuple(reader.size(n, "bundles") for n in reader.get(content, "bundles", list, ""))
    entries = {
        key: tuple(_entry(reader, item, bundles) for item in reader.objects(content, key))
        for key in ("tensors", "blobs")
    }
    files = tuple(
        _file(reader, item, entries["tensors"], entries["blobs"])
        for item in reader.objects(content, "files")
    )
    reader.unique([f.path for f in files], "files")
    tensors = entries["tensors"]
    groups: list[Sequence[Part]] = [f.parts or () for f in files]
    if not files and not content.get("stores"):  # a pytree's
        groups = [range(len(tensors))]
    for parts in groups:
        arrays = [part for part in parts if not isinstance(part, Filler)]
        names = [a.name if isinstance(a, Blocks) else tensors[a].name for a in arrays]
        reader.unique(names, "tensors")
    beside = reader.get(content, "beside", dict, "", default={})
    for name, text in beside.items():
        if not isinstance(text, str):
            raise reader.fail(f"beside {name}", "a text", text)
    stores = tuple(
        _store(reader, item, len(entries["tensors"]), len(entries["blobs"]))
        for item in reader.get(content, "stores", list, "", default=[])
    )
    reader.unique([s.path for s in stores], "stores")
    return Index(
        bundles=bundles,
        files=files,
        beside=beside,
        tree=content.get("tree"),
        stores=stores,
        **entries,
    )


def _store(reader: _Reader, item: Any, tensors: int, blobs: int) -> StoreEntry:
    if not isinstance(item, dict):
        raise reader.fail("stores", "objects", item)
    path = reader.get(item, "path", str, "store")
    if path and not is_safe_path(path):
        raise reader.fail("store path", "a relative path below the checkpoint", path)
    ocdbt = reader.get(item, "ocdbt", bool, path)
    arrays: list[tuple[int, str, Mapping[str, Any]]] = []
    others: list[tuple[str, int]] = []
    for part in reader.get(item, "arrays", list, path):
        number, prefix, metadata = part if isinstance(part, list) and len(part) == 3 else (0, 0, 0)
        # An array of files lies below its store; keys of OCDBT are no files.
        if (
            not isinstance(prefix, str)
            or not isinstance(metadata, dict)
            or not (ocdbt or not prefix or is_safe_path(prefix))
        ):
            raise reader.fail(f"{path} arrays", "tensor, prefix and metadata", part)
        arrays.append((reader.size(number, f"{path} arrays", below=tensors), prefix, metadata))
    for part in reader.get(item, "others", list, path, default=[]):
        key, blob = part if isinstance(part, list) and len(part) == 2 else (0, 0)
        if not isinstance(key, str):
            raise reader.fail(f"{path} others", "key and blob", part)
        others.append((key, reader.size(blob, f"{path} others", below=blobs)))
    return StoreEntry(path=path, ocdbt=ocdbt, arrays=tuple(arrays), others=tuple(others))


def _entry(reader: _Reader, item: dict, bundles: tuple[int, ...]) -> Entry:
    name = reader.get(item, "name", str, "entry")
    try:
        header = read_header(reader, item, name)
        refs, chunks = [], reader.get(item, "chunks", list, name)
        size, step = math.prod(header["shape"]), chunk_length(header["shape"])
        for at, part in enumerate(chunks):
            refs.append(
                read_chunk(
                    reader, part, name, min(step, size - at * step), header["coding"], bundles
                )
            )
        return Entry(
            name, TensorHeader(**header, chunks=tuple(ref.chunk for ref in refs)), tuple(refs)
        )
    except InputError as error:
        raise error.at(file=reader.file, tensor=name) from error


def read_header(reader: _Reader, item: dict, name: str) -> dict[str, Any]:
    """Arguments of TensorHeader but `chunks`."""
    get: Callable[..., Any] = reader.get
    shape = _shape(reader, item, name)
    element, codec = get(item, "format", str, name), get(item, "codec", str, name)
    dtype = get(item, "dtype", str, name)
    dtype_named(dtype)
    if codec not in CODECS:
        raise UnsupportedError("codec", expected=" or ".join(CODECS), found=repr(codec))
    if element != RAW and element not in ELEMENTS:
        raise UnsupportedError("format", expected=" or ".join(ELEMENTS), found=repr(element))
    if element != RAW and not _fills(ELEMENTS[element], dtype_named(dtype)):
        raise reader.fail(f"{name} dtype", f"one that codes of {element} fill", dtype)
    try:
        head = base64.b64decode(get(item, "head", str, name, default=""), validate=True)
    except ValueError:
        raise reader.fail(f"{name} head", "base64", item["head"]) from None
    joint = item.get("joint_entropy_bits")
    for value in (item.get("entropy_bits"), 0.0 if joint is None else joint):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise reader.fail(f"{name} entropy", "a number", value)
    return {
        "shape": shape,
        "dtype": dtype,
        "format": element,
        "coding": Coding(codec=codec, head=head),
        "entropy_bits": item["entropy_bits"],
        "joint_entropy_bits": joint,
        "numpy": not get(item, "jax", bool, name, default=False),
        "scalar": get(item, "scalar", bool, name, default=False),
        "key": get(item, "key", str, name, default=""),
    }


def _shape(reader: _Reader, item: dict, name: str) -> tuple[int, ...]:
    """A shape that NumPy has; before anything is multiplied."""
    shape = reader.get(item, "shape", list, name)
    if len(shape) > MAX_DIMENSIONS:
        raise reader.fail(f"{name} shape", f"up to {MAX_DIMENSIONS} axes", len(shape))
    found = tuple(reader.size(n, f"{name} shape", below=MAX_SIZE) for n in shape)
    if not is_shape(found):
        raise reader.fail(f"{name} shape", "one that NumPy has", list(found))
    return found


def _fills(element: ElementFormat, dtype: np.dtype) -> bool:
    """Whether numbers of a dtype may hold codes of a format, one or several each."""
    if element.code_bits > PACKED_BITS[-1]:
        return dtype == element.dtype
    return element.code_bits == 8 * dtype.itemsize or (
        element.code_bits in PACKED_BITS and dtype.kind in "iu"
    )


def read_chunk(
    reader: _Reader, part: Any, name: str, weights: int, coding: Coding, bundles: tuple[int, ...]
) -> ChunkRef:
    """A chunk reference, within its bundle."""
    is_stored = coding.codec == stored.NAME
    if not isinstance(part, list) or len(part) != (4 if is_stored else 5):
        raise reader.fail(f"{name} chunks", "bundle, offset, bytes and hashes", part)
    bundle = reader.size(part[0], f"{name} chunk's bundle", below=len(bundles))
    offset, size = (reader.size(n, f"{name} chunk") for n in part[1:3])
    if offset + size > bundles[bundle]:
        raise reader.fail(
            f"{name} chunk", f"within bundle {bundle} of {bundles[bundle]} bytes", part
        )
    if not all(isinstance(text, str) and HASH.fullmatch(text) for text in part[3:]):
        raise reader.fail(f"{name} chunk's hashes", "16 hexadecimal digits", part[3:])
    hashes = [int(text, 16) for text in part[3:]]
    chunk = Chunk(weights=weights, bytes=size, payload_hash=hashes[0], codes_hash=hashes[-1])
    return ChunkRef(chunk, bundle, offset)


def _file(
    reader: _Reader, item: dict, tensors: tuple[Entry, ...], blobs: tuple[Entry, ...]
) -> FileEntry:
    path = reader.get(item, "path", str, "file")
    if not is_safe_path(path):
        raise reader.fail("file path", "a relative path below the checkpoint", path)
    inside = reader.get(item, "parts", list, path, default=None)
    return FileEntry(
        path=path,
        blob=reader.size(item.get("blob"), f"{path} blob", below=len(blobs)),
        parts=None
        if inside is None
        else tuple(_part(reader, part, path, tensors, blobs) for part in inside),
        model=reader.get(item, "model", bool, path, default=False),
    )


def _part(
    reader: _Reader, item: Any, path: str, tensors: tuple[Entry, ...], blobs: tuple[Entry, ...]
) -> Part:
    if not isinstance(item, dict):
        return reader.size(item, f"{path} parts", below=len(tensors))
    if "blob" in item:
        return Filler(reader.size(item["blob"], f"{path} parts", below=len(blobs)))
    name = reader.get(item, "name", str, path)
    shape = _shape(reader, item, name)
    fields = tuple(
        reader.size(i, f"{name} fields", below=len(tensors))
        for i in reader.get(item, "fields", list, name)
    )
    headers = [tensors[i].header for i in fields]
    rows = {header.shape[:1] for header in headers}
    size = sum(header.raw_bytes for header in headers)
    if len(rows) != 1 or rows == {()} or not shape or size != math.prod(shape):
        raise reader.fail(f"{name} fields", f"rows of {list(shape)} bytes", list(fields))
    return Blocks(
        name=name, packing=reader.get(item, "packing", str, name), shape=shape, fields=fields
    )
