"""A tensor in archived form: a header and the payloads of its chunks.

A tensor is cut, in row-major order, into *chunks* of `chunk_weights` elements (whole rows where a
row fits, `chunk_length`); the last one is what is left. A chunk decodes by itself. The cut follows
from the shape alone, never from a device.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

import jax
import numpy as np
import xxhash

from jentropy import formats
from jentropy.codecs import Coding, Delta, Span
from jentropy.errors import CorruptError, UnsupportedError
from jentropy.formats import ElementFormat, code_dtype

MAX_DIMENSIONS, MAX_SIZE = 64, 1 << 60  # of a shape, its zeros left out; NumPy has no more
DTYPE_NAME = re.compile("[a-z][a-z0-9_]*")
CHUNK_WEIGHTS = 1 << 20  # fills 128 lanes; smaller would cost more side information


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One chunk of a tensor.

    Attributes:
      weights: its elements.
      bytes: of its payload.
      payload_hash: XXH3-64 of the payload.
      codes_hash: XXH3-64 of the codes, little-endian, that the payload decodes to.

    Example:
      >>> import jentropy
      >>> (chunk,) = jentropy.compress(np.arange(5, dtype=np.int32)).header.chunks
      >>> chunk.weights, chunk.bytes, chunk.codes_hash == chunk.payload_hash  # it is stored
      (5, 20, True)
    """

    weights: int
    bytes: int
    payload_hash: int
    codes_hash: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Description:
    """What is said of a tensor beside its chunks.

    Invariant: `format` is RAW, or the element format whose codes fill the numbers of `dtype`, one
    or several in each.

    Example:
      >>> said = Description(
      ...     shape=(2, 3),
      ...     dtype="float32",
      ...     format="FP32",
      ...     coding=Coding(codec="stored"),
      ...     entropy_bits=0.0,
      ...     joint_entropy_bits=None,
      ... )
      >>> said.size, said.raw_bytes, [span.size for span in said.spans()]
      (6, 24, [6])
    """

    shape: tuple[int, ...]
    dtype: str  # NumPy name of the elements' dtype
    format: str
    coding: Coding
    entropy_bits: float  # of a number: sum of the fields' entropies of all codes in it
    joint_entropy_bits: float | None  # of the codes; None where one has more than 16 bits
    numpy: bool = True  # decompresses to NumPy; False: to a JAX array
    scalar: bool = False  # decompresses to a Python number
    key: str = ""  # implementation of the random keys that it decompresses to
    delta: str = ""  # how its codes are told by those of a base, a name in `codecs.FORMS`

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def chunk_weights(self) -> int:
        """Elements of a chunk, but for the last one."""
        return chunk_length(self.shape)

    @property
    def element(self) -> ElementFormat:
        """Format of the codes in its numbers."""
        return formats.element_named(self.format, dtype_named(self.dtype))

    @property
    def raw_bytes(self) -> int:
        """Bytes of the original."""
        return self.size * dtype_named(self.dtype).itemsize

    def header(self, chunks: Sequence[Chunk]) -> TensorHeader:
        """What is said with its chunks."""
        said = zip(Description.__slots__, _SAID(self), strict=True)
        return TensorHeader(**dict(said), chunks=tuple(chunks))

    @property
    def difference(self) -> Delta | None:
        """How its codes are told by those of a base, if they are."""
        return Delta(form=self.delta, element=self.element) if self.delta else None

    def span(self, start: int) -> Span:
        """Where the chunk that begins with an element lies."""
        dtype = code_dtype(dtype_named(self.dtype))
        return Span(
            start=start,
            size=min(self.chunk_weights, self.size - start),
            shape=self.shape,
            element=formats.raw_element(dtype) if self.delta else self.element,
            dtype=dtype,
            coding=self.coding,
        )

    def spans(self) -> Iterator[Span]:
        """Where each chunk lies."""
        return map(self.span, range(0, self.size, self.chunk_weights))


_SAID = attrgetter(*Description.__slots__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader(Description):
    """What describes an archived tensor; static and hashable.

    Invariant: the chunks' weights add to the size of `shape`, all of them `chunk_weights` but the
    last.

    Example:
      >>> import jentropy
      >>> header = jentropy.compress(np.zeros((400, 300), np.float16)).header
      >>> header.format, header.size, header.raw_bytes, header.coding.codec, len(header.chunks)
      ('FP16', 120000, 240000, 'planes', 1)
    """

    chunks: tuple[Chunk, ...]

    def __post_init__(self) -> None:
        if not is_shape(self.shape):
            raise CorruptError("shape", expected="one that NumPy has", found=f"{self.shape!r:.60}")
        # Counted, not listed: a hostile shape has more chunks than memory holds.
        length = self.chunk_weights
        full, left = divmod(self.size, length)
        count, weights = full + (left > 0), [chunk.weights for chunk in self.chunks]
        if len(weights) != count or weights != [length] * full + [left] * (left > 0):
            raise CorruptError(
                "chunks of a tensor",
                expected=f"{count} for shape {list(self.shape)}",
                found=f"{len(weights)} of {sum(weights)} elements",
            )

    @property
    def payload_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum(chunk.bytes for chunk in self.chunks)


@dataclass(frozen=True)
class PayloadKey:
    """The payload's key in the path of a pytree. Orbax, which would lose the header, refuses it.

    Its message formats the key; whoever shows a path takes `str`.
    """

    def __str__(self) -> str:
        return ".payload"

    def __format__(self, spec: str) -> str:
        return (
            "CompressedTensor: Orbax would store its payload without its header, which nobody "
            "could decode; use jentropy.save(path, tree), or give Orbax jentropy.decompress(tree)"
        )


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedTensor:
    """An archived tensor: a pytree node whose leaves are the arrays of its payload.

    Attributes:
      payload: uint8[bytes] arrays, the chunks' payloads one after another; a chunk lies in one of
        them. Those that `load` gave are memory maps: nothing is read before it is decoded.
      header: shape, dtype, format, coding and checksums.
      sharding: where `decompress` puts the tensor; None: NumPy or the default device.
      base: the tensor by which its codes are told; None where they stand alone, or it is not known.

    Example:
      >>> import jentropy
      >>> packed = jentropy.compress(np.zeros((400, 300), np.float16))
      >>> packed.shape, packed.dtype.name, packed.nbytes < 1000
      ((400, 300), 'float16', True)
      >>> packed
      CompressedTensor(FP16[400, 300], planes, 0.01 bits each)
    """

    payload: tuple[Any, ...]
    header: TensorHeader
    sharding: jax.sharding.Sharding | None = None
    base: Any = None

    def __repr__(self) -> str:
        told = f"{self.header.format}{list(self.shape)}, {self.header.coding.codec}"
        return f"CompressedTensor({told}, {self.bits_per_weight:.2f} bits each)"

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[PayloadKey, Any], ...], tuple[Any, ...]]:
        """Of JAX: payload and base are children, all else is static."""
        children = (PayloadKey(), self.payload), (PayloadKey(), self.base)
        return children, (self.header, self.sharding)

    def tree_flatten(self) -> tuple[tuple[Any, Any], tuple[Any, ...]]:
        """Of JAX."""
        return (self.payload, self.base), (self.header, self.sharding)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], children: tuple[Any, Any]) -> CompressedTensor:
        """Of JAX."""
        return cls(payload=children[0], base=children[1], header=static[0], sharding=static[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that it decompresses to; of random keys that of their data."""
        return self.header.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the tensor that it decompresses to; of random keys that of their data."""
        return dtype_named(self.header.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return self.header.payload_bytes

    @property
    def bits_per_weight(self) -> float:
        """Payload bits of an element."""
        return 8 * self.nbytes / max(1, self.header.size)


def is_compressed(leaf: Any) -> bool:
    """Whether a leaf is a `CompressedTensor`.

    Args:
      leaf: of a pytree.

    Returns:
      True of those, to be given to `jax.tree.map` as `is_leaf`.

    Example:
      >>> import jentropy
      >>> is_compressed(jentropy.compress(np.ones(3))), is_compressed(np.ones(3))
      (True, False)
    """
    return isinstance(leaf, CompressedTensor)


def chunk_length(shape: tuple[int, ...]) -> int:
    """Elements of a chunk: rows that fit into CHUNK_WEIGHTS; of longer ones, parts.

    Example:
      >>> chunk_length((5, 1000)), chunk_length((5, 1 << 21))
      (1048000, 1048576)
    """
    row = shape[-1] if shape else 1
    if row == 0 or row > CHUNK_WEIGHTS:
        return CHUNK_WEIGHTS
    return CHUNK_WEIGHTS // row * row


def is_shape(shape: Sequence[int]) -> bool:
    """Whether an array may have this shape, empty ones included.

    Example:
      >>> is_shape((3, 0)), is_shape((1 << 62,))
      (True, False)
    """
    dimensions = [min(n, MAX_SIZE) for n in shape if n]
    return len(shape) <= MAX_DIMENSIONS and math.prod(dimensions) < MAX_SIZE


def checksum(data: np.ndarray) -> int:
    """XXH3-64 of an array's bytes.

    Args:
      data: of any shape and dtype.

    Example:
      >>> f"{checksum(np.zeros(0, np.uint8)):016x}"
      '2d06800538d394c2'
    """
    flat = np.ascontiguousarray(data).reshape(-1)
    return xxhash.xxh3_64_intdigest(flat.view(np.uint8).data)


def is_storable(dtype: np.dtype) -> bool:
    """Whether arrays of a dtype can be archived: it is numeric, and its name gives it back.

    Example:
      >>> is_storable(np.dtype(np.float16)), is_storable(np.dtype("S3"))
      (True, False)
    """
    try:
        return _is_numeric(dtype) and dtype_named(dtype.name) == dtype.newbyteorder("=")
    except UnsupportedError:
        return False


def _is_numeric(dtype: np.dtype) -> bool:
    return not (
        dtype.hasobject
        or dtype.kind in "SUMm"
        or dtype.names
        or dtype.subdtype
        or dtype.itemsize == 0
        or (dtype.itemsize > 8 and dtype != np.complex128)
    )


def first_twice(names: Iterable[str]) -> str | None:
    """The first name that occurs again.

    Example:
      >>> first_twice(["a", "b", "b", "a"])
      'a'
    """
    return next((name for name, times in Counter(names).items() if times > 1), None)


@lru_cache(maxsize=256)
def dtype_named(name: str) -> np.dtype:
    """The dtype of a NumPy or ml_dtypes name, as `dtype.name` gives it.

    Raises:
      UnsupportedError: no such name, or not that of a numeric dtype.

    Example:
      >>> dtype_named("bfloat16").itemsize
      2
    """
    try:
        dtype = np.dtype(jax.numpy.dtype(name)) if DTYPE_NAME.fullmatch(name) else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.name != name or not _is_numeric(dtype):
        raise UnsupportedError("dtype", expected="a numeric dtype", found=f"{name!r:.60}")
    return dtype
