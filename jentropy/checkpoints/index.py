"""The index of a compressed checkpoint: what its bundles hold, as JSON.

The tables in capitals say how the records of `entries` are read and written; FORMAT.md in
`jentropy/containers` describes every key.
"""

from __future__ import annotations

import json
import math
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from jentropy.codecs import CODECS, FORMS, Coding, planes, stored
from jentropy.containers.tensor import (
    MAX_SIZE,
    Chunk,
    TensorHeader,
    chunk_length,
    dtype_named,
    is_shape,
)
from jentropy.errors import CorruptError, InputError, UnsupportedError
from jentropy.formats import ELEMENTS, RAW, Format
from jentropy.formats.document import FORMAT
from jentropy.schema import (
    ANY,
    BASE64,
    DIGEST,
    FLAG,
    INTEGER,
    NOT,
    NUMBER,
    OBJECT,
    SIZE,
    TEXT,
    Key,
    Kind,
    below,
    checked,
    either,
    many,
    name_in,
    optional,
    parse,
    record,
    row,
    table,
    within,
)

from . import structure
from .entries import (
    PACKED_BITS,
    WITH_BASE,
    Blocks,
    Entry,
    FileEntry,
    Filler,
    Index,
    PartEntry,
    StoreEntry,
    WeightEntry,
    is_safe_path,
)
from .unread import unread

MAX_BYTES = 1 << 31  # of JSON: that of some millions of tensors
MAX_RATIO, SLACK_BYTES = 200, 1 << 20  # of JSON to a deflated index; real ones have 20
# Bytes that Python takes for what a character of JSON begins or parts, at the most, and how many
# for a byte of a deflated index: real ones have up to 80.
COSTS = {b"{": 250, b"[": 60, b'"': 28, b",": 36}
MAX_COST, SLACK_COST = 200, 1 << 28
KEY = "jentropy"  # names the version, here and in the custom metadata


@lru_cache(maxsize=256)
def _known_dtype(name: str) -> str:
    dtype_named(name)
    return name


@lru_cache(maxsize=256)
def _fills(number_format: str, dtype: str) -> bool:
    """Whether numbers of a dtype may hold codes of a format, one or several each."""
    if number_format == RAW:
        return True
    element, numbers = ELEMENTS[number_format], dtype_named(dtype)
    if element.code_bits > PACKED_BITS[-1]:
        return numbers == element.dtype
    return element.code_bits == 8 * numbers.itemsize or (
        element.code_bits in PACKED_BITS and numbers.kind in "iu"
    )


def _entry(**told: Any) -> Entry:
    """The entry of the values of ENTRY."""
    shape, rows, dtype = told["shape"], told["chunks"], told["dtype"]
    size, step, hashed = math.prod(shape), chunk_length(shape), 4 + (told["codec"] != stored.NAME)
    if not _fills(told["format"], dtype):
        raise CorruptError(
            ".dtype", expected=f"one that codes of {told['format']} fill", found=dtype
        )
    if any(len(one) != hashed for one in rows):
        raise CorruptError(".chunks", expected="bundle, offset, bytes and hashes", found="others")
    header = TensorHeader(
        shape=shape,
        dtype=dtype,
        format=told["format"],
        coding=Coding(codec=told["codec"], head=told["head"]),
        chunks=tuple(
            Chunk(
                weights=min(step, size - at * step),
                bytes=one[2],
                payload_hash=one[3],
                codes_hash=one[-1],
            )
            for at, one in enumerate(rows)
        ),
        entropy_bits=told["entropy_bits"],
        joint_entropy_bits=told["joint_entropy_bits"],
        numpy=told["jax"],
        scalar=told["scalar"],
        key=told["key"],
        delta=told["delta"],
    )
    if bool(told["delta"]) != (told["base"] is not None) or (
        told["delta"] and told["codec"] != planes.NAME
    ):
        expected = "with a number of the base's tensors, by planes"
        raise CorruptError(".delta", expected=expected, found=f"{told['delta']!r:.20}")
    return Entry(told["name"], header, tuple(one[:2] for one in rows), told["base"])


def _check_kind(dtype: str, number_format: str, codec: str) -> None:
    """Raises InputError unless these are known and go together."""
    name_in(CODECS).read(codec)
    if not _fills(name_in((*ELEMENTS, RAW)).read(number_format), _known_dtype(dtype)):
        raise CorruptError(".dtype", expected="another", found=dtype)


def _read_entries(values: Any) -> tuple[Entry, ...]:
    try:
        entries = unread(values, ENTRY.read, _check_kind)
    except InputError:
        entries = None
    return many(ENTRY).read(values) if entries is None else entries


def _index(*, tree: Any, formats: tuple[Format, ...], **told: Any) -> Index:
    """The index of the values of INDEX."""
    told["version"] = told.pop(KEY)
    try:
        nodes = structure.from_json(tree, formats)
    except InputError as error:
        raise within(error, ".tree") from error
    return Index(tree=nodes, formats=formats, **told)


def _is_number(value: Any) -> bool:
    return isinstance(value, int)


def _is_filler(value: Any) -> bool:
    return isinstance(value, Filler) or (isinstance(value, dict) and "blob" in value)


PATH = checked(TEXT, "a relative path below the checkpoint", is_safe_path)
SHAPE = checked(many(below(MAX_SIZE)), "one that NumPy has", is_shape)
ENTRY = record(
    _entry,
    {
        "name": TEXT,
        "shape": Key(SHAPE, "header.shape"),
        "dtype": Key(Kind(lambda value: _known_dtype(TEXT.read(value))), "header.dtype"),
        "format": Key(name_in((*ELEMENTS, RAW)), "header.format"),
        "codec": Key(name_in(CODECS), "header.coding.codec"),
        "head": Key(BASE64, "header.coding.head", b""),
        "entropy_bits": Key(NUMBER, "header.entropy_bits"),
        "joint_entropy_bits": Key(NUMBER, "header.joint_entropy_bits", None),
        "jax": Key(NOT, "header.numpy", True),
        "scalar": Key(FLAG, "header.scalar", False),
        "key": Key(TEXT, "header.key", ""),
        "delta": Key(name_in(("", *FORMS)), "header.delta", ""),
        "base": Key(optional(SIZE), "base", None),
        "chunks": Key(many(row(SIZE, SIZE, SIZE, DIGEST, DIGEST, least=4)), "rows"),
    },
    tensor="name",
)
ENTRIES = Kind(_read_entries, many(ENTRY).write)
BLOCKS = record(
    Blocks, {"name": TEXT, "packing": TEXT, "shape": SHAPE, "fields": many(SIZE)}, tensor="name"
)
SECTION = either(_is_number, SIZE, either(_is_filler, record(Filler, {"blob": SIZE}), BLOCKS))
FILE = record(
    FileEntry,
    {
        "path": PATH,
        "blob": SIZE,
        "parts": Key(many(SECTION), default=None),
        "model": Key(FLAG, default=False),
        "mode": Key(optional(below(1 << 9)), default=None),
        "modified_ns": Key(optional(INTEGER), default=None),
    },
)
STORE = checked(
    record(
        StoreEntry,
        {
            "path": either(lambda path: path == "", TEXT, PATH),
            "ocdbt": FLAG,
            "arrays": many(row(SIZE, TEXT, OBJECT)),
            "others": Key(many(row(TEXT, SIZE)), default=()),
        },
    ),
    "arrays below their store",  # those of files; keys of OCDBT are no files
    lambda store: (
        store.ocdbt
        or all(not key or is_safe_path(key.removesuffix("/")) for _, key, _ in store.arrays)
    ),
)
PART = record(PartEntry, {"array": SIZE, "unpack": Key(TEXT, default="whole")}, rest="arguments")
WEIGHT = record(
    WeightEntry,
    {
        "name": TEXT,
        "dialect": TEXT,
        "version": SIZE,
        "format": SIZE,
        "shape": SHAPE,
        "parts": checked(table(PART), "parts with a code", lambda parts: "code" in parts),
        "settled": Key(many(SIZE), default=()),
    },
    tensor="name",
)
INDEX = record(
    _index,
    {
        KEY: Key(Kind(lambda value: check_version(value)), "version"),
        "bundles": many(SIZE),
        "files": many(FILE),
        "blobs": ENTRIES,
        "tensors": ENTRIES,
        "beside": Key(table(TEXT), default={}),
        "tree": Key(ANY, "tree_json", None),
        "stores": Key(many(STORE), default=()),
        "formats": Key(many(FORMAT), default=()),
        "weights": Key(many(WEIGHT), default=()),
        "base": Key(optional(DIGEST), default=None),
    },
)


def to_bytes(index: Index) -> bytes:
    """An index as it is stored: compact JSON in ASCII, deflated."""
    return zlib.compress(json.dumps(INDEX.write(index), separators=(",", ":")).encode(), 9)


def from_bytes(data: bytes, file: Path) -> Index:
    """Reads and checks an index, as it is stored.

    Args:
      file: where it was read, for messages.

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
    cost = sum(bytes_ * text.count(char) for char, bytes_ in COSTS.items())
    if cost > SLACK_COST + MAX_COST * len(data):
        raise CorruptError(
            "index", file=file, expected="no more than its bytes may hold", found=f"{cost} bytes"
        )
    return from_json(text, file)


def from_json(text: bytes, file: Path) -> Index:
    """Reads and checks the JSON of an index.

    Raises:
      CorruptError: anything that is not as FORMAT.md says.
      UnsupportedError: another version, codec, format or dtype, by name.
    """
    return parse(INDEX, text, file, "index")


def check_version(version: Any) -> int:
    """The same version; raises UnsupportedError unless this release reads what is of it."""
    if type(version) is not int or not 1 <= version <= WITH_BASE:
        raise UnsupportedError(
            "version of the compressed checkpoint",
            expected=f"{WITH_BASE} or lower",
            found=f"{version!r:.40}",
            hint="a newer jentropy wrote it",
        )
    return version
