"""Classes of a tensor's rows and columns, whose sum is the context of a code.

A class is a step of mean magnitude, so that a context is a step of the magnitude that a code's row
and column let expect. In a head, rows first, then columns:

    u1 number of kinds, u1 each kind, the commonest first; if there are several, each row's
    (column's) place among them in unary
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jentropy.errors import CorruptError

from . import bits, buffers
from .coding import Span

WHAT = "classes of rows and columns"


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes of the rows and of the columns of a tensor.

    Attributes:
      rows, columns: uint8, class of each.
    """

    rows: np.ndarray
    columns: np.ndarray

    @cached_property
    def count(self) -> int:
        """Number of contexts."""
        return 1 + int(self.rows.max(initial=0)) + int(self.columns.max(initial=0))

    def around(self, span: Span) -> tuple[np.ndarray, np.ndarray, int]:
        """Classes of the rows that a chunk lies in and of all columns; what the first row lacks."""
        low, high = span.start // span.columns, -(-(span.start + span.size) // span.columns)
        return self.rows[low:high], self.columns, span.start - low * span.columns

    def contexts_of(self, span: Span, out: np.ndarray | None = None) -> np.ndarray:
        """Contexts of a chunk's codes.

        Args:
          out: uint8[size], where they go; None: to a new array.

        Returns:
          uint8[size].
        """
        if out is None:
            out = buffers.empty((span.size,), np.uint8)
        if self.count == 1:
            out[:] = 0
            return out
        rows, columns, skip = self.around(span)
        whole = rows.size * columns.size == span.size
        both = (out if whole else np.empty(rows.size * columns.size, np.uint8)).reshape(
            rows.size, -1
        )
        both[:] = rows[:, None]
        if columns.any():
            both += columns
        if not whole:
            out[:] = both.reshape(-1)[skip:][: span.size]
        return out

    def written(self) -> bytes:
        """Their bytes in a head."""
        return _write(self.rows) + _write(self.columns)

    def bits(self) -> int:
        """Bits that they take in a head, about."""
        return _bits(self.rows) + _bits(self.columns)


def read_classes(reader: bits.Reader, rows: int, columns: int) -> Classes:
    """Classes of so many rows and columns.

    Raises:
      CorruptError: there are none.
    """
    return Classes(_read(reader, rows), _read(reader, columns))


def _write(classes: np.ndarray) -> bytes:
    if not classes.any():
        return bytes([1, 0])
    counts = np.bincount(classes)
    kinds = np.argsort(-counts, kind="stable")
    kinds = kinds[counts[kinds] > 0]
    place = np.zeros(counts.size, np.int64)
    place[kinds] = np.arange(kinds.size)
    head = bytes([kinds.size, *kinds.tolist()])
    return head if kinds.size == 1 else head + bits.unary(place[classes])


def _bits(classes: np.ndarray) -> int:
    if not classes.any():
        return 16
    counts = np.sort(np.bincount(classes))[::-1]
    return 8 + 8 * int(np.count_nonzero(counts)) + int(counts @ np.arange(1, counts.size + 1))


def _read(reader: bits.Reader, count: int) -> np.ndarray:
    kinds = reader.array("u1", reader.integer("u1"))
    if kinds.size == 0:
        raise CorruptError(WHAT, expected="a kind", found="none")
    if kinds.size == 1:
        return np.broadcast_to(kinds, (count,))  # takes no memory
    places = reader.unary(count)
    if places.max(initial=0) >= kinds.size:
        expected = f"places below {kinds.size}"
        raise CorruptError(WHAT, expected=expected, found=int(places.max()))
    return kinds[places]
