"""Counts of one tensor's codes, and what follows from them.

Codes of up to 16 bits are counted whole, so that every marginal and the joint entropy are exact.
Wider codes are counted in slices of 16 bits. A field that is wider than MAX_FIELD_BITS or crosses
a slice is measured in parts of at most 8 bits whose entropies add: an upper bound, and one that a
byte coder reaches. A plug-in over the 2^23 mantissas of FP32 would read log2(n) for every tensor of
fewer than some millions of weights, whatever is in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from jentropy import modes
from jentropy.formats import ElementFormat

from . import histogram, sharded
from .estimators import shannon_bits

SLICE_BITS = 16
MAX_FIELD_BITS = 16  # widest field that is measured in one piece
PART_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Histograms of a tensor's codes, or the sum of many tensors'.

    Invariants: `slices[i]` counts bits 16 i and up of the codes, int64[2^16] (int64[2^code_bits]
    where a code is narrower); every slice sums to `weights`.

    Example:
      >>> from jentropy.formats import FP16
      >>> counts = measure(np.array([0x3C00, 0xBC00], np.uint16), FP16)  # 1 and -1
      >>> counts.entropy_bits(), (counts + counts).weights
      (1.0, 4)
    """

    element: ElementFormat
    weights: int
    slices: tuple[np.ndarray, ...]

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            element=self.element,
            weights=self.weights + other.weights,
            slices=tuple(a + b for a, b in zip(self.slices, other.slices, strict=True)),
        )

    def bit_range(self, low: int, bits: int) -> np.ndarray:
        """Histogram of bits low .. low + bits - 1 of the codes, within one slice. int64[2^bits]."""
        if (low, bits) not in self._ranges:
            index, shift = divmod(low, SLICE_BITS)
            codes, counts = self._in_use[index]
            # Exact: bincount adds in doubles, which hold every count below 2^53.
            part = (codes >> shift) & ((1 << bits) - 1)
            found = np.bincount(part, counts, minlength=1 << bits).astype(np.int64)
            found.flags.writeable = False
            self._ranges[low, bits] = found
        return self._ranges[low, bits]

    @cached_property
    def _ranges(self) -> dict[tuple[int, int], np.ndarray]:
        """What `bit_range` has found."""
        return {}

    @cached_property
    def _in_use(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Codes that occur, a tenth of all, and how often; of each slice."""
        used = [np.flatnonzero(counts != 0) for counts in self.slices]  # bool: five times as fast
        return [(codes, counts[codes]) for codes, counts in zip(used, self.slices, strict=True)]

    @cached_property
    def _fields(self) -> dict[str, list[tuple[int, float, int]]]:
        """Of each part of a field its width, its entropy, and how many of its values occur."""
        found = {}
        for f in self.element.fields:
            parts = parts_of(self.element.shift(f.name), f.bits)
            counts = [self.bit_range(*part) for part in parts]
            found[f.name] = [
                (bits, shannon_bits(one), int(np.count_nonzero(one)))
                for (_, bits), one in zip(parts, counts, strict=True)
            ]
        return found

    @cached_property
    def _joint(self) -> float:
        """Entropy of the first slice."""
        return shannon_bits(self._in_use[0][1])

    def field_entropy_bits(self) -> dict[str, float]:
        """Entropy of each field, bits per weight."""
        return {name: sum(bits for _, bits, _ in parts) for name, parts in self._fields.items()}

    def entropy_bits(self) -> float:
        """Sum of the fields' entropies, bits per weight."""
        return sum(self.field_entropy_bits().values())

    def joint_entropy_bits(self) -> float | None:
        """Entropy of whole codes, bits per weight; None where a code has more than 16 bits."""
        return self._joint if len(self.slices) == 1 else None

    def whole_entropy_bits(self) -> float:
        """Entropy of whole codes where it is known, else the sum of the fields'."""
        joint = self.joint_entropy_bits()
        return self.entropy_bits() if joint is None else joint

    def described_bits(self) -> float:
        """Bits per weight of the codes and of what a decoder has to know of them.

        The shorter of two descriptions: each code with a probability of its own, or field by field.
        A probability costs half of log2(weights) bits.

        References:
          Rissanen 1986, Stochastic complexity and modeling.
        """
        return self._described

    @cached_property
    def _described(self) -> float:
        a_cell = 0.5 * np.log2(max(2, self.weights)) / max(1, self.weights)
        # A field that is as good as full is not worth its probabilities.
        bits = sum(
            min(float(width), entropy + a_cell * (used - 1))
            for parts in self._fields.values()
            for width, entropy, used in parts
        )
        if len(self.slices) > 1:
            return float(bits)
        whole = self._joint + a_cell * max(0, self._in_use[0][0].size - 1)
        return float(min(bits, whole))


def parts_of(low: int, bits: int) -> list[tuple[int, int]]:
    """Lowest bits and widths of the parts of a field that are measured in one piece.

    Args:
      low: the field's lowest bit.
      bits: its width.

    Returns:
      From the lowest up.

    Example:
      >>> parts_of(7, 8), parts_of(0, 23)
      ([(7, 8)], [(0, 8), (8, 8), (16, 7)])
    """
    end = low + bits
    if bits <= MAX_FIELD_BITS and low // SLICE_BITS == (end - 1) // SLICE_BITS:
        return [(low, bits)]
    bounds = sorted({low, end, *range(low - low % -PART_BITS, end, PART_BITS)})
    return [(a, b - a) for a, b in itertools.pairwise(bounds)]


def measure(codes: np.ndarray | jax.Array, element: ElementFormat) -> Counts:
    """Counts the codes of a tensor.

    Args:
      codes: unsigned integers of any shape, or a RAW array of any dtype; a memory map is read once,
        a part at a time. Those of JAX are counted where they lie, over a mesh too.
      element: their format.

    Returns:
      How often each code, or each part of 16 bits of it, occurs.

    Example:
      >>> from jentropy.formats import INT8
      >>> measure(np.array([3, 3, 5, 5], np.uint8), INT8).joint_entropy_bits()
      1.0
    """
    with modes.detached_modes():
        return begin(codes, element)()


def begin(codes: np.ndarray | jax.Array, element: ElementFormat) -> Callable[[], Counts]:
    """What `measure` does, with what XLA does still to be awaited, in `modes.detached_modes`.

    Args:
      codes, element: as `measure` takes them; codes stay as they are until the counts are there.

    Returns:
      What gives the counts.
    """
    bits = element.code_bits
    if isinstance(codes, jax.Array):
        found = tuple(sharded.count(codes, bits=bits))
        return lambda: Counts(element=element, weights=codes.size, slices=found)
    flat = np.asarray(codes).reshape(-1)
    if bits <= SLICE_BITS:
        views = [flat.view(f"uint{8 * flat.dtype.itemsize}")]
    else:
        views = [_slice(flat, low) for low in range(0, bits, SLICE_BITS)]
    begun = [histogram.begin(view, bits=min(bits, SLICE_BITS)) for view in views]
    return lambda: Counts(
        element=element, weights=flat.size, slices=tuple(one.result() for one in begun)
    )


def measure_slice(codes: np.ndarray, low: int) -> np.ndarray:
    """Histogram of bits low .. low + 15 of wider codes, `low` a multiple of 16. int64[2^16]."""
    return histogram.count(_slice(codes.reshape(-1), low), bits=SLICE_BITS)


def _slice(flat: np.ndarray, low: int) -> np.ndarray:
    """Bits low .. low + 15. uint16[n]"""
    words = flat.view("<u2").reshape(flat.size, flat.dtype.itemsize // 2)
    return words[:, low // SLICE_BITS]


def count_bytes(numbers: np.ndarray) -> np.ndarray:
    """How often each byte occurs in numbers of any width.

    Args:
      numbers: of any shape and dtype.

    Returns:
      int64[256].

    Example:
      >>> int(count_bytes(np.array([0x0102, 0x0101], np.uint16))[1])
      3
    """
    return histogram.count(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8), bits=8)


def measure_packed(byte_counts: np.ndarray, element: ElementFormat) -> Counts:
    """Counts of codes that lie one or two to a byte.

    Args:
      byte_counts: int64[256], how often each byte occurs.
      element: the codes' format, of 4 or 8 bits.

    Returns:
      How often each code occurs.

    Example:
      >>> from jentropy.formats import INT4
      >>> measure_packed(count_bytes(np.array([0x33, 0x55], np.uint8)), INT4).joint_entropy_bits()
      1.0
    """
    counts = byte_counts
    if element.code_bits == 4:
        pairs = byte_counts.reshape(16, 16)
        counts = pairs.sum(axis=0) + pairs.sum(axis=1)
    return Counts(element=element, weights=int(counts.sum()), slices=(counts,))
