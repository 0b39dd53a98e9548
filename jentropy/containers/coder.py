"""Tensors to chunks and back, many tensors in one call of the codecs.

Both directions are generators that hold `codecs.batch_symbols()` elements at a time, whatever the
tensors' sizes are.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from jentropy import codecs, entropy, formats, modes
from jentropy.codecs import Coding, Delta, Span, deflate, threads
from jentropy.errors import ChecksumError, CorruptError, InputError
from jentropy.formats import ElementFormat, code_dtype

from . import memory
from .tensor import (
    Chunk,
    Description,
    TensorHeader,
    checksum,
    chunk_length,
    dtype_named,
)

AHEAD = 16  # runs of drafts of each core, made before they are wanted, as others are coded
RUN_BYTES = 1 << 22  # of tensors whose drafts are made together
LEAST_BYTES = 1 << 13  # that a tensor counts for in a run, however small it is
FEW = 1 << 14  # numbers; tensors of no more are counted together
TOGETHER = 1 << 18  # numbers that are counted together
READ_BYTES = 1 << 28  # of what is read ahead
SYMBOL_BYTES = 2  # as in most weights
LEAST_SYMBOLS = 1 << 11  # of a chunk in a batch: the tables of a tiny one take memory too
PARTS = 4  # of a batch that are coded one by one, so that there are others

T = TypeVar("T")
ReadCodes = Callable[[int, int], np.ndarray]  # codes from the start-th on, so many


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft(Description):
    """A tensor on its way in: everything that its header will say but the chunks.

    Attributes:
      name: for messages.
      codes: of any shape; a memory map is read in parts.
      base: gives the codes of a base in a range, where those of the tensor are told by them.

    Example:
      >>> [span.size for span in draft("w", np.zeros((3, 5), np.float32)).parts()]
      [15]
    """

    name: str
    codes: np.ndarray
    base: ReadCodes | None = None

    def parts(self) -> Iterator[Span]:
        """Chunks that are to be coded; one of nothing of a tensor that has no elements."""
        return self.spans() if self.size else iter([self.span(0)])

    def part(self, span: Span) -> np.ndarray:
        """The numbers of a chunk, in memory."""
        return np.asarray(self.codes.reshape(-1)[span.start : span.start + span.size])

    def told(self, codes: np.ndarray, span: Span) -> np.ndarray:
        """What is coded of a chunk: its codes, or their differences from those of the base."""
        if self.difference is None or self.base is None:
            return codes
        return self.difference.of(codes, self.base(span.start, span.size))


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """A tensor as it came, of which a draft is to be made.

    Attributes:
      name: for messages.
      values: an array of any numeric dtype; a memory map is not read whole.
      element: format of the codes in it, if that is not its dtype's; a number may hold several.
      numpy: whether it comes back as NumPy.
      scalar, key: see `TensorHeader`.
      base: gives the codes of a tensor of this shape and dtype in a range (start, size), from
        which those of the values may differ little.

    Example:
      >>> made = drafted([Original("w", np.zeros((2, 3), np.float32))])[0]
      >>> made.format, made.shape, made.coding.codec
      ('FP32', (2, 3), 'stored')
    """

    name: str
    values: np.ndarray
    element: ElementFormat | None = None
    numpy: bool = True
    scalar: bool = False
    key: str = ""
    base: ReadCodes | None = None

    def draft(self, seen: _Seen, choices: Sequence[tuple[int, Coding]]) -> Draft:
        """Its draft.

        Args:
          choices: bytes and coding of it as it is, and in each form of differences from the base.
        """
        at = min(range(len(choices)), key=lambda n: choices[n][0]) if len(choices) > 1 else 0
        return Draft(
            name=self.name,
            codes=seen.codes,
            shape=tuple(self.values.shape),
            dtype=self.values.dtype.name,
            format=seen.element.name,
            coding=choices[at][1],
            # Rounded, so that the last bits of a platform's log2 do not show.
            entropy_bits=round(seen.entropy_bits, 6),
            joint_entropy_bits=None if seen.joint_bits is None else round(seen.joint_bits, 6),
            numpy=self.numpy,
            scalar=self.scalar,
            key=self.key,
            delta=("", *codecs.FORMS)[at],
            base=self.base if at else None,
        )


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What is looked at of an original; entropies are of its numbers."""

    codes: np.ndarray
    element: ElementFormat
    entropy_bits: float = 0.0
    joint_bits: float | None = None
    to_choose: list[codecs.Seen] = field(default_factory=list)

    @property
    def is_small(self) -> bool:
        """Whether it is counted with others."""
        packed = codecs.is_packed(self.element, self.codes.dtype)
        return 0 < self.codes.size <= FEW and self.codes.dtype.kind == "u" and not packed


def drafted(originals: Sequence[Original | Draft]) -> list[Draft]:
    """Counts tensors and chooses their codings, of all of them together; drafts stay.

    Example:
      >>> [made.name for made in drafted([Original("w", np.zeros(3, np.int8))])]
      ['w']
    """
    with modes.detached_modes():
        seen = {n: _begun(one) for n, one in enumerate(originals) if isinstance(one, Original)}
        by_kind: dict[Any, list[_Seen]] = {}
        for one in seen.values():
            if one.is_small:
                # By the very object: to hash what it says takes longer than to count a tensor.
                by_kind.setdefault((id(one.element), one.codes.dtype), []).append(one)
            else:
                _look(one)
        for alike in by_kind.values():
            for batch in _batches(alike, lambda one: one.codes.size, TOGETHER):
                _look_at_many(batch)
        for n, one in seen.items():
            one.to_choose += _differences(originals[n], one)
        choices = iter(codecs.choose_all([way for one in seen.values() for way in one.to_choose]))
        return [
            one.draft(seen[n], list(itertools.islice(choices, len(seen[n].to_choose))))
            if isinstance(one, Original)
            else one
            for n, one in enumerate(originals)
        ]


def _begun(original: Original) -> _Seen:
    values, element = original.values, original.element
    if element is None:
        element = formats.element_named(formats.format_of_dtype(values.dtype), values.dtype)
    return _Seen(codes=formats.codes_of(values), element=element)


def _look(one: _Seen) -> None:
    """Counts a tensor."""
    if codecs.is_packed(one.element, one.codes.dtype):
        slices: Sequence[np.ndarray] = [entropy.count_bytes(one.codes)]
        counts = entropy.measure_packed(slices[0], one.element)
    else:
        counts = entropy.measure(one.codes, one.element)
        slices = counts.slices
    per_number = counts.weights // max(1, one.codes.size)
    joint = counts.joint_entropy_bits()
    one.entropy_bits = per_number * counts.entropy_bits()
    one.joint_bits = None if joint is None else per_number * joint
    one.to_choose = [codecs.seen(one.codes, slices, one.element)]


def _look_at_many(alike: Sequence[_Seen]) -> None:
    """Counts small tensors of one kind."""
    many = entropy.many_of([one.codes for one in alike], alike[0].element)
    joint = many.joint_entropy_bits()
    joints = [None] * len(alike) if joint is None else joint.tolist()
    looked = codecs.seen_of_many(many, [one.codes for one in alike])
    found = zip(alike, many.entropy_bits().tolist(), joints, looked, strict=True)
    for one, bits, joint_bits, to_choose in found:
        one.entropy_bits, one.joint_bits, one.to_choose = bits, joint_bits, [to_choose]


def _differences(original: Original | Draft, seen: _Seen) -> Iterator[codecs.Seen]:
    """What is counted of each form of differences from a base, if there is one."""
    if original.base is None or not seen.codes.size or seen.codes.dtype.kind != "u":
        return
    flat, step = seen.codes.reshape(-1), chunk_length(seen.codes.shape)
    element = formats.raw_element(seen.codes.dtype)
    counts: list[entropy.Counts | None] = [None] * len(codecs.FORMS)
    for start in range(0, flat.size, step):
        part = np.asarray(flat[start : start + step])
        base = original.base(start, part.size)
        for n, form in enumerate(codecs.FORMS):
            told = codecs.Delta(form=form, element=seen.element).of(part, base)
            more, before = entropy.measure(told, element), counts[n]
            counts[n] = more if before is None else before + more
    for whole in counts:
        assert whole is not None
        yield codecs.seen_by_counts(flat.nbytes, whole.slices, element)


def draft(name: str, values: np.ndarray, **options: Any) -> Draft:
    """The draft of one tensor.

    Args:
      name, values, options: as of `Original`.

    Example:
      >>> draft("w", np.zeros((2, 3), np.float32)).coding.codec
      'stored'
    """
    return drafted([Original(name, values, **options)])[0]


def drafts(
    makers: Iterable[Callable[[], Draft | Original]],
    sizes: Iterable[int],
    *,
    reads: Iterable[bool] = itertools.repeat(False),
) -> Iterator[Draft]:
    """Drafts in order, made in all threads, those of many small tensors together.

    Args:
      makers: give what a draft is made of, or a draft.
      sizes: bytes of each.
      reads: whether those are read into memory; about READ_BYTES are read ahead.

    Example:
      >>> make = lambda: Original("w", np.zeros(3, np.int8))
      >>> [made.name for made in drafts([make], [3])]
      ['w']
    """
    workers, ahead = threads.count(), 0
    made: deque[tuple[Future[list[Draft]], int]] = deque()
    rows = zip(makers, sizes, reads, strict=False)

    def run(makers: Sequence[Callable[[], Draft | Original]]) -> list[Draft]:
        return drafted([make() for make in makers])

    with ThreadPoolExecutor(workers) as pool:
        try:
            for together in _batches(rows, lambda row: max(row[1], LEAST_BYTES), RUN_BYTES):
                taken = sum(size for _, size, is_read in together if is_read)
                made.append((pool.submit(run, [make for make, _, _ in together]), taken))
                ahead += taken
                while len(made) > AHEAD * workers or ahead > READ_BYTES:
                    future, taken = made.popleft()
                    yield from future.result()
                    ahead -= taken
            while made:
                yield from made.popleft()[0].result()
        finally:
            for future, _ in made:
                future.cancel()


def blob(name: str, data: np.ndarray) -> Draft:
    """Bytes of a file or a header, uint8[n]: deflated.

    Args:
      name: for messages.
      data: a memory map is not read whole.

    Example:
      >>> blob("config.json", np.frombuffer(b"{}", np.uint8)).coding.codec
      'deflate'
    """
    return Draft(
        name=name,
        codes=data,
        shape=tuple(data.shape),
        dtype="uint8",
        format=formats.RAW,
        coding=Coding(codec=deflate.NAME),
        entropy_bits=8.0,
        joint_entropy_bits=None,
    )


def _batches(items: Iterable[T], weights: Callable[[T], int], enough: int) -> Iterator[list[T]]:
    """Runs of items that have enough elements together; the last one what is left."""
    batch, total = list[T](), 0
    for item in items:
        batch.append(item)
        total += weights(item)
        if total >= enough:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _symbols(span: Span) -> int:
    """What a chunk takes of a batch, whose memory goes by its bytes; a symbol is two."""
    return max(LEAST_SYMBOLS, span.size, span.size * span.dtype.itemsize // SYMBOL_BYTES)


def encode(drafts: Iterable[Draft]) -> Iterator[tuple[Draft, list[tuple[Chunk, np.ndarray]]]]:
    """Chunks and their payloads, in order.

    Yields:
      A tensor and its next chunks; a tensor's chunks may come in several lists, and an empty
      tensor comes once, with none.

    Example:
      >>> ((made, ((chunk, payload),)),) = encode([draft("w", np.arange(3, dtype=np.int16))])
      >>> made.name, chunk.weights, payload.tolist()
      ('w', 3, [0, 0, 1, 0, 2, 0])
    """
    parts = ((draft, span) for draft in drafts for span in draft.parts())
    for batch in _batches(parts, lambda part: _symbols(part[1]), codecs.batch_symbols() // PARTS):
        codes = [draft.part(span) for draft, span in batch]
        told = (draft.told(part, span) for part, (draft, span) in zip(codes, batch, strict=True))
        payloads = codecs.encode(list(told), [span for _, span in batch])
        chunks = iter(zip(threads.each(_chunk, codes, payloads), payloads, strict=True))
        for draft, group in itertools.groupby(draft for draft, _ in batch):
            coded = list(itertools.islice(chunks, len(list(group))))
            yield draft, [(chunk, payload) for chunk, payload in coded if chunk.weights]


def _chunk(codes: np.ndarray, payload: np.ndarray) -> Chunk:
    of_codes = checksum(codes)
    is_same = payload.ctypes.data == codes.ctypes.data and payload.size == codes.nbytes
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
    for batch in _batches(items, lambda item: _symbols(item.span), codecs.batch_symbols()):
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
