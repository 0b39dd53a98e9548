"""How an encoder fits codec `planes` to a tensor: its tables, and its constant if it has one.

Nothing here is needed to decode. Integers throughout, so that every machine decides alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jentropy.entropy import shannon_bits
from jentropy.formats import ElementFormat, code_dtype
from jentropy.formats.packing import NIBBLE

from . import calls, tables
from .byte_planes import are_bytes, runs_of, split
from .coding import Coding
from .planes import (
    NAME,
    NIBBLES,
    OF_BYTES,
    OF_OTHERS,
    OF_PAIRS,
    SIGN,
    STORED,
    WITH_ESCAPES,
    WITH_SIGNS,
    pair_tables,
)
from .rans import SLOTS
from .tables import BYTE

RARE = 4  # a byte that fills less than one part in this of a slot escapes
MIN_GAIN = 200  # a plane that does not shrink by one part in this is stored
COMMON = 32  # a number that is more than one part in this of a tensor may be its constant
AT_ONCE = 1 << 20  # numbers that are looked at together


@dataclass(frozen=True, slots=True)
class Constant:
    """A number that is common in a tensor, and that the first plane tells from all others.

    Attributes:
      bytes: its bytes in all planes, of the positive one; the sign is in the second.
      negatives: how often it is negative.
    """

    bytes: tuple[int, ...]
    negatives: int


def constant_of(
    numbers: np.ndarray, slices: Sequence[np.ndarray], element: ElementFormat
) -> Constant | None:
    """The common number whose byte in the first plane no other has, but for its negative.

    Args:
      numbers, slices: as `codecs.choose` takes them, of a code each.
    """
    counts = slices[-1]
    most = int(counts.max())
    if are_bytes(element) or COMMON * most < numbers.size or most == numbers.size:
        return None
    ((low, _),) = runs_of(element)[0]
    first = np.arange(counts.size) >> low % 16 & BYTE - 1
    highs = np.flatnonzero((counts > 0) & (first == first[counts.argmax()]))
    positive = counts.size // 2 - 1
    if len(set((highs & positive).tolist())) > 1:
        return None
    number, rest = int(highs[0]) & positive, 16 * (len(slices) - 1)
    if rest:
        flat, rests = numbers.reshape(-1), set()
        for start in range(0, flat.size, AT_ONCE):
            part = np.asarray(flat[start : start + AT_ONCE])
            same = part[part >> rest & positive == number]
            rests |= set(np.unique(same & (1 << rest) - 1).tolist())
            if len(rests) > 1:
                return None
        number = number << rest | rests.pop()
    planes = split(np.array([number], code_dtype(element.dtype)), element)
    negatives = int(counts[highs[highs > positive]].sum())
    return Constant(tuple(int(plane[0]) for plane in planes), negatives)


def choose(
    histograms: Sequence[np.ndarray], element: ElementFormat, constant: Constant | None = None
) -> tuple[int, Coding]:
    """The smallest coding of a tensor by planes, and about how many bytes it takes.

    Args:
      histograms: int64[256] of every plane's bytes.
      element: format of the codes.
      constant: of `constant_of`.
    """
    head, total = b"", 0
    for i, counts in enumerate(histograms):
        coded, part = _plane(counts, element)
        if constant is not None and i:
            omitted, byte = int(histograms[0][constant.bytes[0]]), constant.bytes[i]
            negatives = constant.negatives if i == 1 else 0
            left = counts.copy()
            left[byte] -= omitted - negatives
            left[byte | SIGN] -= negatives
            others, rest = _plane(left, element)
            others += omitted // 8 if negatives else 0
            if MIN_GAIN * (coded - others) > int(counts.sum()):
                kind = WITH_SIGNS if negatives else OF_OTHERS
                coded, part = others, bytes([kind, constant.bytes[0], byte]) + rest
        total += coded
        head += part
    return total + len(head), Coding(codec=NAME, head=head)


def _plane(counts: np.ndarray, element: ElementFormat) -> tuple[int, bytes]:
    """Bytes that a plane of such counts takes, and its part of the head."""
    size = int(counts.sum())
    if size == 0:
        return 0, bytes([STORED])
    pairs = element.code_bits == NIBBLE  # two codes to a byte
    coded, head = (_with_pairs if pairs else _with_bytes)(counts, size)
    worth = MIN_GAIN * coded < (MIN_GAIN - 1) * size
    return (coded, head) if worth else (size, bytes([STORED]))


def least_bytes(histograms: Sequence[np.ndarray]) -> float:
    """What the planes of such counts take at the least: their entropies."""
    return sum(int(counts.sum()) * shannon_bits(counts) for counts in histograms) / 8


def _with_bytes(counts: np.ndarray, size: int) -> tuple[int, bytes]:
    """Bytes that a plane of such counts, `size` in all, takes with its own table, and the table."""
    common = counts * SLOTS * RARE >= size
    used = np.flatnonzero(common)
    first, last = int(used[0]), int(used[-1])
    inside = np.where(common, counts, 0)[None, first : last + 1]
    rare = size - int(inside.sum())
    kind = WITH_ESCAPES if rare else OF_BYTES
    if rare:
        inside = np.append(inside, rare)[None]
    levels = tables.levels_of_used(inside)
    head = bytes([kind, first, last - first]) + tables.write_levels(levels)
    return _bytes(inside, tables.frequencies_of(levels), size) + rare, head


def _with_pairs(counts: np.ndarray, size: int) -> tuple[int, bytes]:
    """The same with one table for both halves of a byte."""
    square = counts.reshape(NIBBLES, NIBBLES)
    levels = tables.levels_of_used((square.sum(axis=0) + square.sum(axis=1))[None])
    head = bytes([OF_PAIRS]) + tables.write_levels(levels)
    return _bytes(counts[None], pair_tables(levels).frequencies, size), head


def _bytes(counts: np.ndarray, frequencies: np.ndarray, size: int) -> int:
    """Bytes that symbols of such counts take, and their lanes."""
    bits = -(-int((counts * tables.costs(frequencies)).sum()) >> tables.COST_BITS)
    return -(-bits // 8) + 5 * calls.lane_count(size)
