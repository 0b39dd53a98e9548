"""Tensors to chunks and back, many tensors in one call of the codecs.

Both directions are generators that hold `codecs.batch_symbols()` elements at a time, whatever the
tensors' sizes are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jentropy import codecs
from jentropy.codecs import Delta, Span, threads
from jentropy.errors import ChecksumError, CorruptError, InputError
from jentropy.formats import code_dtype

from . import memory
from .drafting import Draft, batches
from .tensor import Chunk, TensorHeader, checksum, dtype_named

SYMBOL_BYTES = 2  # as in most weights
LEAST_SYMBOLS = 1 << 11  # of a chunk in a batch: the tables of a tiny one take memory too
PARTS = 4  # of a batch that are coded one by one, so that there are others


def _symbols(span: Span) -> int:
    """What a chunk takes of a batch, whose memory goes by its bytes; a symbol is two."""
    return max(LEAST_SYMBOLS, span.size, span.size * span.dtype.itemsize // SYMBOL_BYTES)


def encode(drafts: Iterable[Draft]) -> Iterator[tuple[Draft, list[tuple[Chunk, np.ndarray]]]]:
    """Chunks and their payloads, in order.

    Yields:
      A tensor and its next chunks; a tensor's chunks may come in several lists, and an empty
      tensor comes once, with none.

    Example:
      >>> from jentropy.containers.drafting import draft
      >>> ((made, ((chunk, payload),)),) = encode([draft("w", np.arange(3, dtype=np.int16))])
      >>> made.name, chunk.weights, payload.tolist()
      ('w', 3, [0, 0, 1, 0, 2, 0])
    """
    parts = ((draft, span) for draft in drafts for span in draft.parts())
    for batch in batches(parts, lambda part: _symbols(part[1]), codecs.batch_symbols() // PARTS):
        codes = [draft.part(span) for draft, span in batch]
        told = (draft.told(part, span) for part, (draft, span) in zip(codes, batch, strict=True))
        payloads = codecs.encode(list(told), [span for _, span in batch])
        chunks = iter(zip(threads.each(_chunk, codes, payloads), payloads, strict=True))
        for draft, group in itertools.groupby(draft for draft, _ in batch):
            coded = list(itertools.islice(chunks, len(list(group))))
            yield draft, [(chunk, payload) for chunk, payload in coded if chunk.weights]


def _chunk(codes: np.ndarray, payload: np.ndarray) -> Chunk:
    of_codes = checksum(codes)
    # A payload that lies where the codes do is all of them.
    is_same = payload.size == codes.nbytes and np.may_share_memory(payload, codes)
    return Chunk(
        weights=codes.size,
        bytes=payload.size,
        payload_hash=of_codes if is_same else checksum(payload),
        codes_hash=of_codes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A chunk on its way out.

    Attributes:
      name: of its tensor, for messages.
      payload: uint8[chunk.bytes].
      file: where it was read, for messages.
      tensor: all codes of its tensor, where its own are to go; None: to an array of their own.
      error: why the payload cannot be read, if it cannot.
      delta: how its codes are told by those of `base`, the same chunk of another tensor; None: they
        stand alone.
      is_base: whether it is only asked for what is told by it.

    Example:
      >>> from jentropy.containers.drafting import draft
      >>> made = draft("w", np.arange(3, dtype=np.int16))
      >>> ((_, ((chunk, payload),)),) = encode([made])
      >>> item = Coded(name="w", chunk=chunk, payload=payload, span=made.span(0))
      >>> [codes.tolist() for _, codes in decode([item])]
      [[0, 1, 2]]
    """

    name: str
    chunk: Chunk
    payload: np.ndarray
    span: Span
    file: object = None
    tensor: np.ndarray | None = None
    error: InputError | None = None
    delta: Delta | None = None
    base: Coded | None = None
    is_base: bool = False

    @property
    def out(self) -> np.ndarray:
        """An array for its codes."""
        if self.tensor is None:
            return np.empty(self.span.size, self.span.dtype)
        return self.tensor[self.span.start : self.span.start + self.span.size]


def room(header: TensorHeader) -> np.ndarray:
    """An array for all codes of a tensor (`Coded.tensor`).

    Raises:
      InputError: there is not so much memory.

    Example:
      >>> import jentropy
      >>> room(jentropy.compress(np.ones((2, 3), np.float32)).header).shape
      (6,)
    """
    memory.expect(header.raw_bytes, f"a {header.dtype} tensor of {list(header.shape)}")
    return np.empty(header.size, code_dtype(dtype_named(header.dtype)))


def decode_on_host(items: Sequence[Coded]) -> Sequence[np.ndarray]:
    """Codes of chunks."""
    outs = [item.out for item in items]
    return codecs.decode([item.payload for item in items], [item.span for item in items], outs)


def decode(items: Iterable[Coded]) -> Iterator[tuple[Coded, np.ndarray]]:
    """Each chunk and its codes, in order. Payload and codes are held to their checksums.

    Raises:
      ChecksumError: a payload or its codes are not what was stored.
      CorruptError: a payload that does not decode.

    Example:
      >>> import jentropy
      >>> from jentropy.containers.chunks import coded_chunks
      >>> items = coded_chunks("w", jentropy.compress(np.arange(3, dtype=np.int16)))
      >>> [(item.name, codes.tolist()) for item, codes in decode(items)]
      [('w', [0, 1, 2])]
    """
    for item, codes in survey(items):
        if isinstance(codes, InputError):
            raise codes
        yield item, codes


def survey(items: Iterable[Coded]) -> Iterator[tuple[Coded, np.ndarray | InputError]]:
    """Each chunk and its codes, or what is wrong with it, in order.

    Example:
      >>> import dataclasses, jentropy
      >>> from jentropy.containers.chunks import coded_chunks
      >>> (item,) = coded_chunks("w", jentropy.compress(np.ones(3)))
      >>> damaged = dataclasses.replace(item, payload=item.payload[::-1])
      >>> [type(codes).__name__ for _, codes in survey([item, damaged])]
      ['ndarray', 'ChecksumError']
    """
    below: np.ndarray | InputError = np.zeros(0, np.uint8)
    for batch, decoded in _surveyed(_with_bases(items), decode_on_host):
        codes = list[Any]()
        for item, one in zip(batch, decoded, strict=True):
            below = one if item.delta is None else _restored(item, one, below)
            codes.append(below)
        errors = threads.each(_codes_error, batch, codes)
        for item, error, one in zip(batch, errors, codes, strict=True):
            if not item.is_base:
                yield item, error or one


def _with_bases(items: Iterable[Coded]) -> Iterator[Coded]:
    """Chunks, each behind the one that its codes are told by."""
    for item in items:
        chain = [item]
        while chain[-1].base is not None:
            chain.append(replace(chain[-1].base, is_base=True))
        yield from reversed(chain)


def _restored(
    item: Coded, told: np.ndarray | InputError, base: np.ndarray | InputError
) -> np.ndarray | InputError:
    """Codes of differences, in their place."""
    if isinstance(told, InputError) or item.delta is None:
        return told
    if isinstance(base, InputError):
        return base
    if base.shape != told.shape or base.dtype != told.dtype:
        found = f"{base.dtype}{list(base.shape)}"
        return CorruptError("base", tensor=item.name, expected=f"{told.dtype}", found=found)
    told[...] = item.delta.restored(told, base)
    return told


def decode_batches(
    items: Iterable[Coded], run: Callable[[list[Coded]], Sequence[Any]]
) -> Iterator[tuple[list[Coded], Sequence[Any]]]:
    """Chunks, as many at a time as are worth a call, and what `run` decodes of them.

    Raises:
      ChecksumError: a payload is not what was stored.
      CorruptError: `run` raised it; by the chunk that it is about.
    """
    for batch, codes in _surveyed(items, run):
        for error in codes:
            if isinstance(error, InputError):
                raise error
        yield batch, codes


def _surveyed(
    items: Iterable[Coded], run: Callable[[list[Coded]], Sequence[Any]]
) -> Iterator[tuple[list[Coded], list[Any]]]:
    """What `decode_batches` gives, with errors in the places of damaged chunks."""
    for batch in batches(items, lambda item: _symbols(item.span), codecs.batch_symbols()):
        errors = threads.each(payload_error, batch)
        sound = [item for item, error in zip(batch, errors, strict=True) if error is None]
        decoded = iter(_by_name(sound, run) if sound else ())
        yield batch, [next(decoded) if error is None else error for error in errors]


def _by_name(batch: list[Coded], run: Callable[[list[Coded]], Sequence[Any]]) -> Sequence[Any]:
    try:
        return run(batch)
    except CorruptError as error:
        if len(batch) > 1:  # find the ones that it is about
            return [codes for item in batch for codes in _by_name([item], run)]
        return [error.at(file=batch[0].file, tensor=batch[0].name)]


def assemble(decoded: Iterator[tuple[Coded, np.ndarray]], header: TensorHeader) -> np.ndarray:
    """The next tensor of `decode`, in its own dtype and shape; its chunks went to a `room`.

    Example:
      >>> import jentropy
      >>> from jentropy.containers.chunks import coded_chunks
      >>> packed = jentropy.compress(np.arange(4, dtype=np.int16).reshape(2, 2))
      >>> assemble(decode(coded_chunks("w", packed, together=True)), packed.header).tolist()
      [[0, 1], [2, 3]]
    """
    codes: np.ndarray | None = None
    for item, _ in itertools.islice(decoded, len(header.chunks)):
        codes = item.tensor
    codes = room(header) if codes is None else codes
    return codes.view(dtype_named(header.dtype)).reshape(header.shape)


def check_payload(item: Coded) -> None:
    """Raises ChecksumError unless the payload is the one that was stored.

    Example:
      >>> import jentropy
      >>> from jentropy.containers.chunks import coded_chunks
      >>> for item in coded_chunks("w", jentropy.compress(np.ones(3))):
      ...     check_payload(item)
    """
    if (error := payload_error(item)) is not None:
        raise error


def payload_error(item: Coded) -> InputError | None:
    """What is wrong with a payload, if it is not the one that was stored.

    Example:
      >>> import jentropy
      >>> from jentropy.containers.chunks import coded_chunks
      >>> [payload_error(item) for item in coded_chunks("w", jentropy.compress(np.ones(3)))]
      [None]
    """
    if item.error is not None:
        return item.error.at(file=item.file, tensor=item.name)
    return hash_error(item, "payload", item.chunk.payload_hash, checksum(item.payload))


def _codes_error(item: Coded, codes: np.ndarray | InputError) -> InputError | None:
    if isinstance(codes, InputError):
        return codes
    return hash_error(item, "codes", item.chunk.codes_hash, checksum(codes))


def hash_error(item: Coded, what: str, expected: int, found: int) -> ChecksumError | None:
    """The error of a hash that is not the one that was stored."""
    if expected == found:
        return None
    return ChecksumError(
        f"checksum of a chunk's {what}",
        file=item.file,
        tensor=item.name,
        expected=f"{expected:016x}",
        found=f"{found:016x}",
    )
