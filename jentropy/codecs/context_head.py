"""The head of codec `context`: tables, and the classes of rows and columns that choose among them.

A code's *top* is its exponent and two leading mantissa bits; what is left, r raw bits (of BF16 sign
and five mantissa bits, r = 6; of FP16 r = 9), is stored (`rawbits`). A top is coded as symbol
top - first - context, or as an escape. Context = class of the row + class of the column, a class
being a step of a quarter octave of mean magnitude. Two mantissa bits make four tops an octave, of
different widths, so that contexts a whole octave apart have nearly the same table and share it:
the table of a context is context mod T.

Little-endian:

    u1 flags       1: there are escapes
    u1 T (1, 2 or 4), u1 count - 1, u2 first, u2 base of escapes
    levels         of T tables of count symbols, and one for escapes (`tables`)
    classes        of rows and columns (`scale_classes`)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from jentropy.errors import CorruptError
from jentropy.formats import BF16, FP16, ElementFormat

from . import bits, tables
from .coding import Span
from .scale_classes import Classes, read_classes
from .tables import Tables

NAME = "context"
MANTISSA = 2  # leading mantissa bits of a top; a third costs more in tables than it saves
ELEMENTS = (BF16, FP16)
TABLES = 4  # of a tensor at the most: tops of an octave
ESCAPE = 255  # what a decoder's table shows for an escape
HEAD = f"head of codec {NAME!r}"


def raw_bits_of(element: ElementFormat) -> int:
    """Raw bits of a code: sign and the mantissa bits that are not in the top."""
    return 1 + element.field_bits("mantissa") - MANTISSA


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """How a tensor is coded.

    Attributes:
      element: format of its codes.
      first, count: the window of tops that have symbols, in context 0; it moves by one from a
        context to the next.
      levels: int64[T, count or count + 1], the last for escapes.
      classes: of rows and columns.
      base: of escapes.
    """

    element: ElementFormat
    first: int
    count: int
    levels: np.ndarray
    classes: Classes
    base: int

    @property
    def raw_bits(self) -> int:
        """Raw bits of a code."""
        return raw_bits_of(self.element)

    @property
    def escapes(self) -> bool:
        """Whether there are escapes."""
        return self.levels.shape[1] > self.count

    @cached_property
    def tables(self) -> Tables:
        """The tables; a decoder is shown symbols and ESCAPE."""
        shown = np.arange(self.levels.shape[1])
        shown[self.count :] = ESCAPE
        return Tables(tables.frequencies_of(self.levels), shown)

    @property
    def table_mask(self) -> np.uint8:
        """The table of a context is `context & mask`."""
        return np.uint8(self.tables.count - 1)


def write_head(head: Head) -> bytes:
    """A head's bytes."""
    numbers = bytes([head.escapes, len(head.levels), head.count - 1])
    numbers += head.first.to_bytes(2, "little") + head.base.to_bytes(2, "little")
    return numbers + tables.write_levels(head.levels) + head.classes.written()


def head_of(span: Span) -> Head:
    """The head of a chunk's tensor.

    Raises:
      CorruptError: no head, or one of another format.
    """
    if span.element not in ELEMENTS:
        names = " or ".join(element.name for element in ELEMENTS)
        raise CorruptError(f"format of codec {NAME!r}", expected=names, found=span.element.name)
    return read_head(span.coding.head, span.element, span.rows, span.columns)


@lru_cache(maxsize=256)  # with its tables a head is some 70 KB
def read_head(head: bytes, element: ElementFormat, rows: int, columns: int) -> Head:
    """What bytes say of a tensor of so many rows and columns.

    Raises:
      CorruptError: no head.
    """
    reader = bits.Reader(head, HEAD)
    flags, number, less = (reader.integer("u1") for _ in range(3))
    first, base, count = reader.integer("<u2"), reader.integer("<u2"), less + 1
    if flags > 1 or number not in (1, 2, TABLES):
        expected = f"flags 0 or 1, and 1, 2 or {TABLES} tables"
        raise CorruptError(HEAD, expected=expected, found=f"{flags}, {number}")
    parsed = Head(
        element=element,
        first=first,
        count=count,
        base=base,
        levels=tables.read_levels(reader, number, count + flags),
        classes=read_classes(reader, rows, columns),
    )
    reader.end()
    tops = count + parsed.classes.count - 1
    if tops > ESCAPE:
        raise CorruptError(HEAD, expected=f"up to {ESCAPE} tops", found=tops)
    return parsed
