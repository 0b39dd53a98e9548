"""Codec `scaled`: codes of a byte, with a table for each scale of row and column.

What integers on a grid need whose step the rows, or the columns, do not share. How an encoder
chooses is in `fit_scaled`. Head:

    u1 flags       1: there are escapes
    u1 first, u1 count - 1
    classes        of rows and columns (`scale_classes`); their sum is a code's context
    levels         of a table for each context, of count symbols: bytes first, first + 1, ...; with
                   flag 1 of one more, the escape. Bytes of level 0 in their table escape

A chunk of n codes is a stream of bytes, with flag 1 one that has escapes (`escaping`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from jentropy.errors import CorruptError

from . import bits, calls, escaping, lanes, tables
from .coding import Span
from .scale_classes import Classes, read_classes
from .tables import BYTE, Tables

NAME = "scaled"
HEAD = f"head of codec {NAME!r}"
MOST = 31  # contexts


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """How a tensor is coded.

    Attributes:
      first: the byte of the first symbol.
      levels: int64[contexts, symbols], the last for escapes if there are any.
      escapes: whether there are.
      classes: of rows and columns.
    """

    first: int
    levels: np.ndarray
    escapes: bool
    classes: Classes

    @cached_property
    def marker(self) -> int:
        """The byte that stands for an escape: the first that no table has."""
        unused = np.ones(BYTE, bool)
        symbols = self.levels[:, : self.levels.shape[1] - self.escapes]
        unused[self.first + np.flatnonzero(symbols.any(axis=0))] = False
        if not unused.any():
            raise CorruptError(HEAD, expected="bytes to escape", found="none")
        return int(np.argmax(unused))

    @cached_property
    def tables(self) -> Tables:
        """One for each context."""
        shown = self.first + np.arange(self.levels.shape[1])
        if self.escapes:
            shown[-1] = self.marker
        return Tables(tables.frequencies_of(self.levels), shown)

    @cached_property
    def symbols(self) -> np.ndarray:
        """The byte that codes each byte in each context: itself or the marker. uint8[..., 256]"""
        found = np.tile(np.arange(BYTE, dtype=np.uint8), (len(self.levels), 1))
        if self.escapes:
            known = np.zeros(found.shape, bool)
            stop = self.first + self.levels.shape[1] - 1
            known[:, self.first : stop] = self.levels[:, :-1] > 0
            found[~known] = self.marker
        return found


def write_head(head: Head) -> bytes:
    """A head's bytes."""
    count = head.levels.shape[1] - head.escapes
    numbers = bytes([head.escapes, head.first, count - 1])
    return numbers + head.classes.written() + tables.write_levels(head.levels)


def head_of(span: Span) -> Head:
    """The head of a chunk's tensor.

    Raises:
      CorruptError: no head, or numbers that are no bytes.
    """
    if span.dtype.itemsize != 1:
        found = span.dtype.name
        raise CorruptError(f"numbers of codec {NAME!r}", expected="of one byte", found=found)
    return read_head(span.coding.head, span.rows, span.columns)


@lru_cache(maxsize=64)  # with its tables a head is up to half a MB
def read_head(head: bytes, rows: int, columns: int) -> Head:
    """What bytes say of a tensor of so many rows and columns.

    Raises:
      CorruptError: no head.
    """
    reader = bits.Reader(head, HEAD)
    flags, first, count = reader.integer("u1"), reader.integer("u1"), reader.integer("u1") + 1
    classes = read_classes(reader, rows, columns)
    if flags > 1 or first + count > BYTE or classes.count > MOST:
        expected = f"flags 0 or 1, symbols below {BYTE}, up to {MOST} contexts"
        found = f"{flags}, {first + count - 1}, {classes.count}"
        raise CorruptError(HEAD, expected=expected, found=found)
    levels = tables.read_levels(reader, classes.count, count + flags)
    reader.end()
    return Head(first=first, levels=levels, escapes=bool(flags), classes=classes)


def table_ids(head: Head, span: Span) -> np.ndarray | None:
    """The table of each code of a chunk; None: all have the first."""
    return None if head.classes.count == 1 else head.classes.contexts_of(span)


def size_bound(span: Span) -> int:
    """Largest payload of a chunk, bytes: a lane emits at most a word a symbol."""
    return 10 + 6 * calls.lane_count(span.size) + 3 * span.size


def encode(chunks: Sequence[np.ndarray], spans: Sequence[Span]) -> list[np.ndarray]:
    """Payloads of chunks of codes, uint8 each."""
    return lanes.encode(map(Encoding, chunks, spans))


class Encoding(lanes.Encoding):
    """A chunk to be coded."""

    def __init__(self, codes: np.ndarray, span: Span):
        self.codes, self.span, self.head = codes.reshape(-1).view(np.uint8), span, head_of(span)
        self.size, self.tables = span.size, self.head.tables

    def prepare(self) -> None:
        """Tables and symbols."""
        self.table_ids = table_ids(self.head, self.span)
        self.symbols = self.codes
        if self.head.escapes:
            context = 0 if self.table_ids is None else self.table_ids.astype(np.uint16) << 8
            self.symbols = self.head.symbols.reshape(-1).take(context | self.codes)

    def finish(self, states: np.ndarray, counts: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The payload."""
        escaped = None
        if self.head.escapes:
            escaped = self.codes[self.symbols == self.head.marker]
        return escaping.written(states, counts, words, escaped)


def decode(
    payloads: Sequence[np.ndarray], spans: Sequence[Span], outs: Sequence[np.ndarray]
) -> None:
    """Writes the codes of payloads, of a byte each.

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.
    """
    lanes.decode(map(Decoding, payloads, spans, outs))


class Decoding(lanes.Decoding):
    """A payload to be decoded."""

    def __init__(self, payload: np.ndarray, span: Span, codes: np.ndarray):
        self.payload, self.span, self.codes, self.head = payload, span, codes, head_of(span)
        self.size, self.tables = span.size, self.head.tables

    def prepare(self) -> None:
        """Parts of the payload, and tables."""
        reader = bits.Reader(self.payload, "coded chunk")
        stored = escaping.read(reader, self.size, escapes=self.head.escapes)
        self.states, self.counts, self.escaped, self.words = stored
        reader.end()
        self.table_ids = table_ids(self.head, self.span)

    def finish(self, symbols: np.ndarray, carries: np.ndarray) -> None:
        """Writes the codes."""
        lanes.expect_no_carries(carries)
        codes = self.codes.view(np.uint8)
        codes[:] = symbols
        if self.head.escapes:
            escaping.put_back(codes, self.head.marker, self.escaped)
