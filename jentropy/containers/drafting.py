"""How tensors will be coded: they are counted, and what takes the fewest bytes is chosen.

Small tensors are counted and chosen together: one by one, Python takes longer than the counting.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from jentropy import codecs, entropy, formats, modes
from jentropy.codecs import Coding, Span, deflate, threads
from jentropy.formats import ElementFormat

from .tensor import Description, chunk_length

AHEAD = 16  # runs of drafts of each core, made before they are wanted, as others are coded
RUN_BYTES = 1 << 22  # of tensors whose drafts are made together
LEAST_BYTES = 1 << 13  # that a tensor counts for in a run, however small it is
FEW = 1 << 14  # numbers; tensors of no more are counted together
TOGETHER = 1 << 18  # numbers that are counted together
READ_BYTES = 1 << 28  # of what is read ahead

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
            for batch in batches(alike, lambda one: one.codes.size, TOGETHER):
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

    runs = batches(rows, lambda row: max(row[1], LEAST_BYTES), RUN_BYTES)
    if workers == 1:  # another thread would wait for this one, and this one for it
        for together in runs:
            yield from run([make for make, _, _ in together])
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            for together in runs:
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


def batches(items: Iterable[T], weights: Callable[[T], int], enough: int) -> Iterator[list[T]]:
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
