"""Codec `sparse`: one number that is common, such as the zeros of pruned weights, and all others.

A mask says where the others are. Both are coded by other codecs: the mask's bytes, so that its
patterns (2 of 4) count, by `planes`; the others, one after another as a tensor of one axis, by
`planes` or `context`. How an encoder chooses is in `fit_sparse`. Head:

    u1 flags       1: the common number has signs, those of products
    number         the common one, with flag 1 the positive one; as wide as it is
    u2 bytes of the head of the mask, and that head
    u1 codec       of the others: 0 `planes`, 1 `context`
    head           of the others

A chunk of n numbers:

    u4 m           how many others there are
    u4 bytes of the mask's payload, and that payload: of ceil(n / 8) bytes of RAW, a bit of each
                   number, lowest first, 1 of the others
    signs          with flag 1: n - m bits, 1 of negative ones, lowest first
    payload        of the others, if there are any
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jentropy.errors import CorruptError
from jentropy.formats import raw_element

from . import bits, context, planes, threads
from .coding import Coding, Span

NAME = "sparse"
HEAD = f"head of codec {NAME!r}"
OTHERS = "numbers beside the common one"
INNER: tuple[ModuleType, ...] = planes, context  # by their numbers in heads
BYTE = np.dtype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Head:
    """How a tensor is coded.

    Attributes:
      common: the number, an unsigned integer.
      signed: whether it has signs; it is then the positive one.
      mask, others: how those are coded.
    """

    common: int
    signed: bool
    mask: Coding
    others: Coding


def write_head(head: Head, dtype: np.dtype) -> bytes:
    """A head's bytes, of a tensor of a dtype."""
    names = [codec.NAME for codec in INNER]
    return b"".join(
        [
            bytes([head.signed]),
            head.common.to_bytes(dtype.itemsize, "little"),
            len(head.mask.head).to_bytes(2, "little"),
            head.mask.head,
            bytes([names.index(head.others.codec)]),
            head.others.head,
        ]
    )


def head_of(span: Span) -> Head:
    """The head of a chunk's tensor.

    Raises:
      CorruptError: no head, or numbers that are no codes of 8 or 16 bits.
    """
    if span.is_packed or span.dtype.kind != "u" or span.dtype.itemsize > 2:
        found = f"{span.element.name} in {span.dtype.name}"
        raise CorruptError(f"numbers of codec {NAME!r}", expected="8 or 16 bits", found=found)
    return read_head(span.coding.head, span.dtype.itemsize)


@lru_cache(maxsize=256)
def read_head(head: bytes, itemsize: int) -> Head:
    """What bytes say of a tensor of numbers so wide.

    Raises:
      CorruptError: no head.
    """
    reader = bits.Reader(head, HEAD)
    flags, common = reader.integer("u1"), reader.integer(f"<u{itemsize}")
    mask = reader.array("u1", reader.integer("<u2")).tobytes()
    codec = reader.integer("u1")
    if flags > 1 or codec >= len(INNER):
        expected = f"flags 0 or 1 and codec below {len(INNER)}"
        raise CorruptError(HEAD, expected=expected, found=f"{flags}, {codec}")
    return Head(
        common=common,
        signed=bool(flags),
        mask=Coding(codec=planes.NAME, head=mask),
        others=Coding(codec=INNER[codec].NAME, head=reader.array("u1", reader.left).tobytes()),
    )


def positive(numbers: Any) -> Any:
    """The mask of all bits but the sign of numbers of an array's dtype."""
    return numbers.dtype.type((1 << 8 * numbers.dtype.itemsize - 1) - 1)


def are_common(numbers: np.ndarray, common: int, *, signed: bool) -> np.ndarray:
    """Which of the numbers, unsigned integers, are the common one. bool, of their shape"""
    return (numbers & positive(numbers) if signed else numbers) == numbers.dtype.type(common)


def _mask_span(span: Span, head: Head) -> Span:
    size = -(-span.size // 8)
    return Span(
        start=0, size=size, shape=(size,), element=raw_element(BYTE), dtype=BYTE, coding=head.mask
    )


def _span_of_others(span: Span, head: Head, size: int) -> Span:
    """Of so many numbers; its shape is that of a chunk without a common number."""
    return replace(span, start=0, size=size, shape=(span.size,), coding=head.others)


def _inner(head: Head) -> ModuleType:
    return next(codec for codec in INNER if head.others.codec == codec.NAME)


def _by_codec(
    heads: Sequence[Head], spans: Sequence[Span]
) -> Iterator[tuple[ModuleType, list[int]]]:
    """Each codec of others, and which chunks have some of it; spans: of the others."""
    for codec in INNER:
        yield (
            codec,
            [
                i
                for i, (head, span) in enumerate(zip(heads, spans, strict=True))
                if span.size and _inner(head) is codec
            ],
        )


def size_bound(span: Span) -> int:
    """Largest payload of a chunk, bytes."""
    head = head_of(span)
    mask, others = _mask_span(span, head), _span_of_others(span, head, span.size)
    return 8 + planes.size_bound(mask) + mask.size + _inner(head).size_bound(others)


def mask_of(common: np.ndarray) -> np.ndarray:
    """Bytes of a mask. uint8[ceil(n / 8)]

    Args:
      common: bool[n], of `are_common`.
    """
    return np.packbits(~common, bitorder="little")


def encode(chunks: Sequence[np.ndarray], spans: Sequence[Span]) -> list[np.ndarray]:
    """Payloads of chunks of numbers, uint8 each."""
    heads = [head_of(span) for span in spans]
    split = threads.each(_split, chunks, heads)
    masks = planes.encode([mask for mask, _, _ in split], list(map(_mask_span, spans, heads)))
    others = [part for _, _, part in split]
    inner = list(map(_span_of_others, spans, heads, (part.size for part in others)))
    payloads = [np.zeros(0, np.uint8)] * len(spans)
    for codec, places in _by_codec(heads, inner):
        coded = codec.encode([others[i] for i in places], [inner[i] for i in places])
        for i, payload in zip(places, coded, strict=True):
            payloads[i] = payload
    return [
        np.concatenate([_number(part.size), _number(mask.size), mask, signs, payload])
        for mask, (_, signs, part), payload in zip(masks, split, payloads, strict=True)
    ]


def _number(value: int) -> np.ndarray:
    return np.array([value], "<u4").view(np.uint8)


def _split(chunk: np.ndarray, head: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mask of a chunk, the signs of its common numbers in bytes, and the others."""
    numbers = chunk.reshape(-1)
    common = are_common(numbers, head.common, signed=head.signed)
    negative = numbers[common] > positive(numbers) if head.signed else common[:0]
    return mask_of(common), np.packbits(negative, bitorder="little"), numbers[~common]


def decode(
    payloads: Sequence[np.ndarray], spans: Sequence[Span], outs: Sequence[np.ndarray]
) -> None:
    """Writes the numbers of payloads, unsigned integers.

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.
    """
    heads = [head_of(span) for span in spans]
    parts = list(map(_parsed, payloads, spans, heads))
    mask_spans = list(map(_mask_span, spans, heads))
    masks = [np.empty(span.size, np.uint8) for span in mask_spans]
    planes.decode([part.mask for part in parts], mask_spans, masks)
    inner = list(map(_span_of_others, spans, heads, (part.size for part in parts)))
    others = [np.empty(span.size, span.dtype) for span in inner]
    for codec, places in _by_codec(heads, inner):
        columns = [part.payload for part in parts], inner, others
        codec.decode(*([column[i] for i in places] for column in columns))
    threads.each(_join, masks, parts, others, heads, outs)


class _Parts(NamedTuple):
    """What a payload is made of.

    Attributes:
      size: how many others there are.
      mask, payload: uint8, of the mask and of the others.
      signs: uint8, a bit each.
    """

    size: int
    mask: np.ndarray
    signs: np.ndarray
    payload: np.ndarray


def _parsed(payload: np.ndarray, span: Span, head: Head) -> _Parts:
    reader = bits.Reader(payload, "coded chunk")
    size = reader.integer("<u4")
    if size > span.size:
        raise CorruptError(OTHERS, expected=f"{span.size} at the most", found=size)
    mask = reader.array("u1", reader.integer("<u4"))
    signs = reader.bits(span.size - size if head.signed else 0)
    rest = reader.array("u1", reader.left if size else 0)
    reader.end()
    return _Parts(size, mask, signs, rest)


def _join(mask: np.ndarray, parts: _Parts, others: np.ndarray, head: Head, out: np.ndarray) -> None:
    """Writes the numbers of a chunk."""
    there = np.unpackbits(mask, count=out.size, bitorder="little").view(bool)
    if np.count_nonzero(there) != parts.size:
        raise CorruptError(OTHERS, expected=np.count_nonzero(there), found=parts.size)
    out[there] = others
    common = np.full(out.size - parts.size, head.common, out.dtype)
    if head.signed:
        common |= parts.signs.astype(out.dtype) << out.dtype.type(8 * out.dtype.itemsize - 1)
    out[~there] = common
