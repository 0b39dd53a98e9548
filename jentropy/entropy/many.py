"""Counts of many small tensors at once: calls for each alone would take longer than its codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from jentropy.formats import ElementFormat

from .statistics import SLICE_BITS, parts_of

DENSE_BITS = 8  # of parts whose values are counted in arrays that have a place for each


@dataclass(frozen=True, kw_only=True)
class Many:
    """Codes of tensors, one after another.

    Attributes:
      element: their format; a number is a code.
      codes: unsigned integers of one axis.
      sizes: int64[tensors], codes of each.

    Example:
      >>> from jentropy.formats import FP16
      >>> many = many_of([np.array([0x3C00, 0xBC00], np.uint16), np.zeros(3, np.uint16)], FP16)
      >>> many.entropy_bits().tolist(), many.joint_entropy_bits().tolist()
      ([1.0, 0.0], [1.0, 0.0])
    """

    element: ElementFormat
    codes: np.ndarray
    sizes: np.ndarray
    _used: dict[tuple[int, int], Any] = field(default_factory=dict)

    @cached_property
    def tensor(self) -> np.ndarray:
        """The tensor of each code, int64[codes]."""
        return np.repeat(np.arange(self.sizes.size), self.sizes)

    def part(self, low: int, bits: int) -> np.ndarray:
        """Bits low .. low + bits - 1 of every code, at most 16, int64[codes]."""
        kind = self.codes.dtype.type
        return ((self.codes >> kind(low)) & kind((1 << bits) - 1)).astype(np.int64)

    def counted(self, values: np.ndarray, bits: int) -> np.ndarray:
        """How often each value of so many bits occurs in each tensor, int64[tensors, 2^bits]."""
        count = self.sizes.size << bits
        return np.bincount(self.tensor << bits | values, minlength=count).reshape(-1, 1 << bits)

    def used(self, low: int, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The values of a part that occur: tensor, value in ascending order, how often; int64."""
        if (low, bits) not in self._used:
            kept, counts = np.unique(self.tensor << bits | self.part(low, bits), return_counts=True)
            self._used[low, bits] = kept >> bits, kept & (1 << bits) - 1, counts
        return self._used[low, bits]

    def entropies(self, counts: np.ndarray) -> np.ndarray:
        """Of each tensor that of its counts, as `estimators.shannon_bits` has it.

        Args:
          counts: int64[tensors, values], how often each of its codes has a value.

        Returns:
          float64[tensors], bits.
        """
        return self._entropy(_times_log2(counts).sum(axis=1))

    def _entropies(self, low: int, bits: int) -> np.ndarray:
        if bits <= DENSE_BITS:
            return self.entropies(self.counted(self.part(low, bits), bits))
        tensor, _, counts = self.used(low, bits)
        return self._entropy(np.bincount(tensor, _times_log2(counts), minlength=self.sizes.size))

    def _entropy(self, weighted: np.ndarray) -> np.ndarray:
        total = np.maximum(self.sizes, 1)
        return np.maximum(0.0, np.log2(total) - weighted / total)

    def entropy_bits(self) -> np.ndarray:
        """Of each tensor the sum of the fields' entropies, bits per weight. float64[tensors]"""
        sums = np.zeros(self.sizes.size)
        for one in self.element.fields:
            for low, bits in parts_of(self.element.shift(one.name), one.bits):
                sums += self._entropies(low, bits)
        return sums

    def joint_entropy_bits(self) -> np.ndarray | None:
        """Of each the entropy of whole codes; None where a code has more than 16 bits."""
        if self.element.code_bits > SLICE_BITS:
            return None
        return self._entropies(0, self.element.code_bits)


def _times_log2(counts: np.ndarray) -> np.ndarray:
    """Each count times its binary logarithm, looked up: counts of small tensors are small."""
    known = np.arange(int(counts.max(initial=0)) + 1)
    return (known * np.log2(np.maximum(known, 1)))[counts]


def many_of(tensors: Sequence[np.ndarray], element: ElementFormat) -> Many:
    """Tensors of codes as one.

    Args:
      tensors: unsigned integers of any shape, at least one.
      element: their format; a number is a code.

    Returns:
      What counts them together.

    Example:
      >>> from jentropy.formats import INT8
      >>> many_of([np.zeros((2, 3), np.uint8), np.zeros(0, np.uint8)], INT8).sizes.tolist()
      [6, 0]
    """
    return Many(
        element=element,
        codes=np.concatenate([codes.reshape(-1) for codes in tensors]),
        sizes=np.array([codes.size for codes in tensors]),
    )
