"""Chunks side by side on a CPU, so that one program splits or merges all those of a call.

Each begins a slab of its own (`rawbits.SLAB` blocks), which has the first top and the count of
symbols of its chunk. There is one program for any number of chunks of any size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import numpy as np

from . import buffers, calls, rawbits

SIZE = rawbits.SLAB * rawbits.BLOCK  # codes of a slab
MOST = calls.LANES * calls.LANE // SIZE  # slabs of a program: those of a call, full or not


def _slabs(size: int) -> int:
    return -(-size // SIZE)


def hold(sizes: Sequence[int]) -> bool:
    """Whether chunks of so many codes are split and merged here."""
    return jax.default_backend() == "cpu" and sum(map(_slabs, sizes)) <= MOST


class Slabs:
    """Where chunks lie.

    Args:
      sizes: codes of each, which `hold`.
      bits: raw bits of a code.
    """

    def __init__(self, sizes: Sequence[int], bits: int):
        self._sizes, self._bits = sizes, bits
        self._counts = [_slabs(size) for size in sizes]
        ends = itertools.accumulate(self._counts)
        self._begins = [SIZE * (end - n) for end, n in zip(ends, self._counts, strict=True)]

    def room(self, dtype: type[np.unsignedinteger]) -> np.ndarray:
        """An array for a number of each code, not filled."""
        return buffers.empty((MOST * SIZE,), dtype)

    def parts(self, array: np.ndarray) -> list[np.ndarray]:
        """Where each chunk's numbers are in an array."""
        places = zip(self._begins, self._sizes, strict=True)
        return [array[begin : begin + size] for begin, size in places]

    def plane_parts(self, planes: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Where each chunk's raw bits are in planes."""
        begins, ends = (
            [rawbits.plane_sizes(n, self._bits) for n in numbers]
            for numbers in (self._begins, self._sizes)
        )
        return [
            [plane[at : at + n] for plane, at, n in zip(planes, *place, strict=True)]
            for place in zip(begins, ends, strict=True)
        ]

    def laid(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Codes of the chunks in their places, zeros to the end of a block. uint16[codes]"""
        if len(codes) == 1 and codes[0].size == MOST * SIZE:
            return codes[0]
        array = self.room(np.uint16)
        for part, begin in zip(codes, self._begins, strict=True):
            end = begin + part.size
            array[begin:end] = part
            array[end : end + -part.size % rawbits.BLOCK] = 0
        return array

    def split(
        self,
        codes: np.ndarray,
        contexts: np.ndarray,
        firsts: Sequence[int],
        counts: Sequence[int],
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Symbols and planes of all, as of `rawbits.split`.

        Args:
          codes, contexts: uint16 and uint8, as they are `laid`.
          firsts, counts: of the heads.
        """
        symbols, planes = rawbits.split_some(
            codes,
            contexts,
            self._of_slabs(firsts),
            self._of_slabs(counts),
            self._used,
            bits=self._bits,
        )
        return np.asarray(symbols), [np.asarray(plane) for plane in planes]

    def merge(
        self,
        symbols: np.ndarray,
        contexts: np.ndarray,
        planes: Sequence[np.ndarray],
        firsts: Sequence[int],
    ) -> np.ndarray:
        """Codes of all, the inverse of `split`. uint16[codes]"""
        merged = rawbits.merge_some(
            symbols, contexts, planes, self._of_slabs(firsts), self._used, bits=self._bits
        )
        return np.asarray(merged).reshape(-1)

    def plane_rooms(self) -> list[np.ndarray]:
        """Arrays for the planes of all codes, not filled."""
        sizes = rawbits.plane_sizes(MOST * SIZE, self._bits)
        return [buffers.empty((size,), np.uint8) for size in sizes]

    @property
    def _used(self) -> np.int32:
        return np.int32(sum(self._counts))

    def _of_slabs(self, values: Sequence[int]) -> np.ndarray:
        """A chunk's value for each of its slabs. uint16[MOST]"""
        every = np.zeros(MOST, np.uint16)
        every[: self._used] = np.repeat(np.array(values, np.uint16), self._counts)
        return every
