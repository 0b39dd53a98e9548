"""Tensors to chunks and back, many tensors in one call of the codecs.

Both directions are generators that hold `codecs.batch_symbols()` elements at a time, whatever the
tensors' sizes are.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jentropy import codecs, entropy, formats, modes
from jentropy.codecs import Coding, Layout, Span, cores, deflate
from jentropy.errors import ChecksumError, CorruptError
from jentropy.formats import ElementFormat, code_dtype

from .tensor import Chunk, TensorHeader, checksum, chunk_length, dtype_named, layout_of

AHEAD = 16  # drafts of each core that are made before they are wanted, as others are coded
PARTS = 4  # of a batch that are coded one by one, so that there are others


@dataclass(frozen=True, slots=True)
class Draft:
    """A tensor on its way in: everything that its header will say but the chunks."""

    name: str
    codes: np.ndarray  # any shape; a memory map is read in pieces
    shape: tuple[int, ...]
    dtype: str
    format: str
    layout: Layout
    coding: Coding
    entropy_bits: float
    joint_entropy_bits: float | None
    numpy: bool
    skip: int = 0  # chunks at the front that are coded already
    scalar: bool = False
    key: str = ""

    @property
    def chunk_weights(self) -> int:
        """Elements of a chunk."""
        return chunk_length(self.shape)

    def header(self, chunks: Sequence[Chunk]) -> TensorHeader:
        """The finished header."""
        return TensorHeader(
            shape=self.shape,
            dtype=self.dtype,
            format=self.format,
            coding=self.coding,
            chunk_weights=self.chunk_weights,
            chunks=tuple(chunks),
            entropy_bits=self.entropy_bits,
            joint_entropy_bits=self.joint_entropy_bits,
            numpy=self.numpy,
            scalar=self.scalar,
            key=self.key,
        )


@modes.detached
def draft(
    name: str,
    values: np.ndarray,
    *,
    element: ElementFormat | None = None,
    numpy: bool = True,
    skip: int = 0,
    scalar: bool = False,
    key: str = "",
) -> Draft:
    """Counts a tensor and chooses its coding.

    Args:
      name: for messages.
      values: an array of any numeric dtype; a memory map is not read whole.
      element: format of the codes in it, if that is not its dtype's; a number may hold several.
      numpy: whether it comes back as NumPy.
      skip: chunks at its front that are coded already.
      scalar, key: see `TensorHeader`.
    """
    format_name = formats.format_of_dtype(values.dtype) if element is None else element.name
    layout = layout_of(format_name, values.dtype, tuple(values.shape))
    codes = formats.codes_of(values)
    per_number = 1
    if layout.octets:
        octets = entropy.count_octets(codes)
        counts = entropy.measure_packed(octets, formats.element_named(format_name, values.dtype))
        per_number = counts.weights // max(1, values.size)
        slices: Sequence[np.ndarray] = [octets]
    else:
        counts = entropy.measure(codes, layout.element)
        slices = counts.slices
    joint = counts.joint_entropy_bits()
    return Draft(
        name=name,
        codes=codes,
        shape=tuple(values.shape),
        dtype=values.dtype.name,
        format=format_name,
        layout=layout,
        coding=codecs.choose(codes, slices, layout),
        # Rounded, so that the last bits of a platform's log2 do not show.
        entropy_bits=round(per_number * counts.entropy_bits(), 6),
        joint_entropy_bits=None if joint is None else round(per_number * joint, 6),
        numpy=numpy,
        skip=skip,
        scalar=scalar,
        key=key,
    )


def drafts(makers: Iterable[Callable[[], Draft]]) -> Iterator[Draft]:
    """Drafts in order, made on all cores, a few ahead of the one that is wanted."""
    workers = cores.count()
    made: deque[Future[Draft]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for make in makers:
                made.append(pool.submit(make))
                if len(made) > AHEAD * workers:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            for future in made:
                future.cancel()


def blob(name: str, data: np.ndarray, *, skip: int = 0) -> Draft:
    """Bytes of a file or a header, uint8[n]: deflated."""
    return Draft(
        name=name,
        codes=data,
        shape=tuple(data.shape),
        dtype="uint8",
        format=formats.RAW,
        layout=layout_of(formats.RAW, data.dtype, tuple(data.shape)),
        coding=Coding(codec=deflate.NAME),
        entropy_bits=8.0,
        joint_entropy_bits=None,
        numpy=True,
        skip=skip,
    )


def encode(drafts: Iterable[Draft]) -> Iterator[tuple[Draft, list[tuple[Chunk, np.ndarray]]]]:
    """Chunks and their payloads, in order.

    Yields:
      A tensor and its next chunks; a tensor's chunks may come in several pieces, and an empty
      tensor comes once, with none.
    """
    pending: list[tuple[Draft, int, np.ndarray]] = []
    held = 0
    for item in drafts:
        flat = item.codes.reshape(-1)
        if flat.size == 0:
            yield from _encode_batch(pending)
            pending, held = [], 0
            yield item, []
        for start in range(item.skip * item.chunk_weights, flat.size, item.chunk_weights):
            piece = np.asarray(flat[start : start + item.chunk_weights])
            pending.append((item, start, piece))
            held += piece.size
            if PARTS * held >= codecs.batch_symbols():
                yield from _encode_batch(pending)
                pending, held = [], 0
    yield from _encode_batch(pending)


def _encode_batch(
    pending: list[tuple[Draft, int, np.ndarray]],
) -> Iterator[tuple[Draft, list[tuple[Chunk, np.ndarray]]]]:
    def finished(i: int, payload: np.ndarray) -> tuple[Chunk, np.ndarray]:
        codes = pending[i][2]
        chunk = Chunk(
            weights=codes.size,
            bytes=payload.size,
            payload_hash=checksum(payload),
            codes_hash=checksum(codes),
        )
        return chunk, payload

    coded = codecs.encode(
        [codes for _, _, codes in pending],
        [Span(start, codes.size, item.layout, item.coding) for item, start, codes in pending],
        finished,
    )
    at = 0
    for _, own in itertools.groupby(pending, key=lambda part: id(part[0])):
        count = len(list(own))
        yield pending[at][0], coded[at : at + count]
        at += count


@dataclass(frozen=True, slots=True)
class Coded:
    """A chunk on its way out."""

    name: str  # of its tensor, for messages
    chunk: Chunk
    payload: np.ndarray  # uint8[chunk.bytes]
    span: Span
    file: object = None  # where it was read, for messages
    whole: np.ndarray | None = None  # all codes of its tensor, where its own are to go


def room(header: TensorHeader) -> np.ndarray:
    """An array for all codes of a tensor (`Coded.whole`)."""
    return np.empty(header.size, code_dtype(dtype_named(header.dtype)))


def decode(items: Iterable[Coded]) -> Iterator[tuple[Coded, np.ndarray]]:
    """Each chunk and its codes, in order. Payload and codes are held to their checksums.

    Raises:
      ChecksumError: a payload or its codes are not what was stored.
      CorruptError: a payload that does not decode.
    """
    batch: list[Coded] = []
    held = 0
    for item in items:
        batch.append(item)
        held += item.chunk.weights
        if held >= codecs.batch_symbols():
            yield from _decode_batch(batch)
            batch, held = [], 0
    yield from _decode_batch(batch)


def assemble(decoded: Iterator[tuple[Coded, np.ndarray]], header: TensorHeader) -> np.ndarray:
    """The next tensor of `decode`, in its own dtype and shape; its chunks went to a `room`."""
    whole = None
    for _ in header.chunks:
        whole = next(decoded)[0].whole
    codes = room(header) if whole is None else whole
    return codes.view(dtype_named(header.dtype)).reshape(header.shape)


def check_payload(item: Coded) -> None:
    """Raises ChecksumError unless the payload is the one that was stored."""
    _expect_hash(item, "payload", item.chunk.payload_hash, checksum(item.payload))


def _expect_hash(item: Coded, what: str, expected: int, found: int) -> None:
    if expected != found:
        raise ChecksumError(
            f"checksum of a chunk's {what}",
            file=item.file,
            tensor=item.name,
            expected=f"{expected:016x}",
            found=f"{found:016x}",
        )


def _decode_batch(batch: list[Coded]) -> Iterator[tuple[Coded, np.ndarray]]:
    cores.each(check_payload, batch)
    try:
        decoded = _decode_items(batch)
    except ChecksumError:
        raise
    except CorruptError as error:
        if len(batch) > 1:  # find the one that it is about
            for item in batch:
                yield from _decode_batch([item])
            return
        item = batch[0]
        raise error.at(file=item.file, tensor=item.name) from error
    yield from zip(batch, decoded, strict=True)


def _decode_items(batch: list[Coded]) -> list[np.ndarray]:
    def out(item: Coded) -> np.ndarray:
        size = item.chunk.weights
        if item.whole is None:
            return np.empty(size, code_dtype(item.span.layout.element.dtype))
        return item.whole[item.span.start : item.span.start + size]

    def finished(i: int, codes: np.ndarray) -> np.ndarray:
        _expect_hash(batch[i], "codes", batch[i].chunk.codes_hash, checksum(codes))
        return codes

    return codecs.decode(
        [item.payload for item in batch],
        [item.span for item in batch],
        [out(item) for item in batch],
        finished,
    )
