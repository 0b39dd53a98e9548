"""Bit strings of codec headers: unary and Rice codes, read and written whole.

Bits fill bytes from the lowest place up. Unary: a number is that many zeros and a one. Every
string is padded with zeros to a byte.
"""

from __future__ import annotations

import numpy as np

from jentropy.errors import CorruptError


def pack(bits: np.ndarray) -> bytes:
    """Bits, 0 or 1, in order."""
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def unary(numbers: np.ndarray) -> bytes:
    """Unary codes of numbers, one after another."""
    ends = np.cumsum(numbers + 1)
    bits = np.zeros(int(ends[-1]) if ends.size else 0, np.uint8)
    bits[ends - 1] = 1
    return pack(bits)


class Reader:
    """Reads a header or a payload in order; whatever runs past the end is a CorruptError."""

    def __init__(self, data: bytes | np.ndarray, what: str):
        self._data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        self._what = what
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return self._data.size - self._at

    def array(self, dtype: str, count: int) -> np.ndarray:
        """The next numbers; they lie in the data, at any address, and are not to be written."""
        size = np.dtype(dtype).itemsize * count
        if count < 0 or size > self.left:
            raise CorruptError(self._what, expected=f"{size} more bytes", found=self.left)
        part = self._data[self._at : self._at + size]
        self._at += size
        return part.view(dtype)

    def integer(self, dtype: str) -> int:
        """The next number."""
        return int(self.array(dtype, 1)[0])

    def bits(self, count: int) -> np.ndarray:
        """The next bits, and what pads them. uint8[count]."""
        return np.unpackbits(self.array("u1", -(-count // 8)), bitorder="little")[:count]

    def unary(self, count: int) -> np.ndarray:
        """The next unary codes, and what pads them. int64[count]."""
        if count == 0:
            return np.zeros(0, np.int64)
        guess = min(self.left, count // 2 + 4096)  # nearly always enough
        for size in (guess, self.left):
            part = self._data[self._at : self._at + size]
            ends = np.flatnonzero(np.unpackbits(part, bitorder="little"))[:count]
            if ends.size == count:
                self._at += int(ends[-1]) // 8 + 1
                return np.diff(ends, prepend=-1) - 1
        raise CorruptError(self._what, expected=f"{count} unary codes", found=ends.size)

    def end(self) -> None:
        """Raises CorruptError unless all has been read."""
        if self.left:
            raise CorruptError(self._what, expected="its end", found=f"{self.left} more bytes")
