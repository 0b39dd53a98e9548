"""How codes of eight and four bits become BF16 in the registers that WGMMA reads.

A block's four fragments are pairs of codes, two neighbours in a row. Codes of eight bits lie two
pairs to a word, fragments 0 and 2, 1 and 3; of four bits four pairs, one of each fragment. Bits are
in such places that few operations make BF16 of a pair:

    E4M3, E5M2  sign and magnitude of a pair are moved to their places in BF16, subnormal codes too:
                numbers times 2^-120 and 2^-112, which one product undoes
    E2M1        the same, but three of four pairs are masked out where they lie, times 2^-126
    INT4        code | 0x4300 is 128 + code, from which 128 and zero points are subtracted
    INT8        0x4300 | low seven bits, less 0x4300 | eighth bit, which is 128 or 256
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

FRAGMENTS = 4
SIGNS = np.uint32(0x80008000)
BYTES = np.uint32(0x00FF00FF)
NIBBLES = np.uint32(0x000F000F)
EXCESS = np.uint32(0x43004300)  # 128 in BF16, twice: the low seven bits are added to it

Pairs = Sequence[Any]  # uint32 of each fragment


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """An element as it lies in words.

    Attributes:
      words: for four fragments.
      pack: (pairs of codes, in the low bits of halves) -> words.
      codes: the inverse.
      place: (words) -> pairs of BF16, and what is to be subtracted from them or None.
      power: of floats: their numbers are these times 2^power.
      tiny: of floats: 2^-tiny is the least positive one.
      excess: of integers: what is to be subtracted beside a zero point.
    """

    words: int
    pack: Callable[[Pairs], Pairs]
    codes: Callable[[Pairs], Pairs]
    place: Callable[[Pairs], tuple[Pairs, Pairs | None]]
    power: int = 0
    tiny: int = 0
    excess: int = 0


def _pack_bytes(pairs: Pairs) -> Pairs:
    return [pairs[i] << 8 | pairs[i + 2] for i in range(2)]


def _bytes(words: Pairs) -> Pairs:
    return [*(word >> 8 & BYTES for word in words), *(word & BYTES for word in words)]


def _place_float8(words: Pairs, shift: int) -> tuple[Pairs, None]:
    magnitude = np.uint32(0x7F007F00 >> shift)
    high = [*words, *(word << 8 for word in words)]  # codes are the high bytes of halves
    return [word & SIGNS | word >> shift & magnitude for word in high], None


def _place_e2m1(words: Pairs) -> tuple[Pairs, None]:
    (word,), mask = words, np.uint32(0x81C081C0)
    last = word << 1 & SIGNS | word >> 3 & np.uint32(0x01800180) | word >> 7 & np.uint32(0x00400040)
    return [word & mask, word << 3 & mask, word << 6 & mask, last], None


def _pack_e2m1(pairs: Pairs) -> Pairs:
    a, b, c, d = ((p & 0x00080008) << 12 | (p & 0x00070007) << 6 for p in pairs)
    last = (d & SIGNS) >> 1 | (d & 0x01800180) << 3 | (d & 0x00400040) << 7
    return [a | b >> 3 | c >> 6 | last]


def _codes_e2m1(words: Pairs) -> Pairs:
    return [p >> 12 & 0x00080008 | p >> 6 & 0x00070007 for p in _place_e2m1(words)[0]]


def _pack_nibbles(pairs: Pairs) -> Pairs:
    return [pairs[0] | pairs[1] << 4 | pairs[2] << 8 | pairs[3] << 12]


def _nibbles(words: Pairs) -> Pairs:
    (word,) = words
    return [word & NIBBLES, *(word >> 4 * i & NIBBLES for i in range(1, FRAGMENTS))]


def _place_int4(words: Pairs) -> tuple[Pairs, None]:
    return [pair | EXCESS for pair in _nibbles(words)], None


def _place_int8(words: Pairs) -> tuple[Pairs, Pairs]:
    low, eighth = np.uint32(0x007F007F), np.uint32(0x00800080)
    shifted = [*(word >> 8 for word in words), *words]
    return [w & low | EXCESS for w in shifted], [w & eighth | EXCESS for w in shifted]


E4M3 = Element(
    words=2,
    pack=_pack_bytes,
    codes=_bytes,
    place=partial(_place_float8, shift=4),
    power=120,
    tiny=9,
)
E5M2 = Element(
    words=2,
    pack=_pack_bytes,
    codes=_bytes,
    place=partial(_place_float8, shift=3),
    power=112,
    tiny=16,
)
E2M1 = Element(words=1, pack=_pack_e2m1, codes=_codes_e2m1, place=_place_e2m1, power=126, tiny=1)
INT8 = Element(words=2, pack=_pack_bytes, codes=_bytes, place=_place_int8)
INT4 = Element(words=1, pack=_pack_nibbles, codes=_nibbles, place=_place_int4, excess=128)

ELEMENTS = {
    "FP8_E4M3": E4M3,
    "FP8_E5M2": E5M2,
    "FP4_E2M1": E2M1,
    **dict.fromkeys(("INT8", "INT8_EXCESS128", "UINT8"), INT8),
    **dict.fromkeys(("INT4", "INT4_EXCESS8", "UINT4"), INT4),
}
