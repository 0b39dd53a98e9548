"""How codes of eight and four bits become BF16 in the registers that WGMMA reads.

A block's four fragments are pairs of codes, two neighbours in a row. Codes of eight bits lie two
pairs to a word, fragments 0 and 2, 1 and 3; of four bits four pairs, one of each fragment. Bits are
in such places that few operations make BF16 of a pair, times a power of two:

    E4M3, E5M2  one pair is masked out where it lies, the other by two shifts: numbers times 2^-120
                and 2^-112, subnormal ones too
    E2M1        the same, for the fourth pair alone are two shifts needed: times 2^-126
    INT4        a subnormal number, code times 2^-130: one fused operation makes (code - zero) / 8
    INT8        0x4300 | low seven bits, less 0x4300 | eighth bit, which is 128 or 256
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

FRAGMENTS = 4
BYTES = np.uint32(0x00FF00FF)
NIBBLES = np.uint32(0x00780078)  # where a code of INT4 is a subnormal number
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
      power: what is placed, times 2^power, are numbers times 2^-unit.
      unit: see there.
      tiny: of floats: 2^-tiny is the least positive one.
    """

    words: int
    pack: Callable[[Pairs], Pairs]
    codes: Callable[[Pairs], Pairs]
    place: Callable[[Pairs], tuple[Pairs, Pairs | None]]
    power: int = 0
    unit: int = 0
    tiny: int = 0


def _right(word: Any, bits: int) -> Any:
    """Rotated."""
    return word >> bits | word << 32 - bits


def _code(pair: Any, bits: int, shift: int) -> Any:
    """Sign and magnitude, placed as BF16 has them, as codes of so many bits."""
    sign, magnitude = 1 << bits - 1, (1 << bits - 1) - 1
    return pair >> 16 - bits & np.uint32(sign * 0x10001) | pair >> shift & np.uint32(
        magnitude * 0x10001
    )


def _placed(pair: Any, bits: int, shift: int) -> Any:
    """The inverse of `_code`."""
    sign, magnitude = 1 << bits - 1, (1 << bits - 1) - 1
    return (pair & np.uint32(sign * 0x10001)) << 16 - bits | (
        pair & np.uint32(magnitude * 0x10001)
    ) << shift


def _pack_float(pairs: Pairs, join: Callable[..., Pairs], bits: int, shift: int) -> Pairs:
    return join(*(_placed(pair, bits, shift) for pair in pairs))


def _codes_float(words: Pairs, place: Callable[..., Any], bits: int, shift: int) -> Pairs:
    return [_code(pair, bits, shift) for pair in place(words)[0]]


def _join_e4m3(a: Any, b: Any, c: Any, d: Any) -> Pairs:
    return [
        one | (other & np.uint32(0x80F080F0)) >> 4 | (other & np.uint32(0x07000700)) << 4
        for one, other in ((a, c), (b, d))
    ]


def _place_e4m3(words: Pairs) -> tuple[Pairs, None]:
    first = [word & np.uint32(0x87F087F0) for word in words]
    second = [
        word << 4 & np.uint32(0x80F080F0) | word >> 4 & np.uint32(0x07000700) for word in words
    ]
    return first + second, None


def _join_e5m2(a: Any, b: Any, c: Any, d: Any) -> Pairs:
    return [
        one | _right(other & np.uint32(0x0F600F60), 24) | (other & np.uint32(0x80808080)) >> 3
        for one, other in ((a, c), (b, d))
    ]


def _place_e5m2(words: Pairs) -> tuple[Pairs, None]:
    first = [word & np.uint32(0x8FE08FE0) for word in words]
    second = [
        _right(word, 8) & np.uint32(0x0F600F60) | word << 3 & np.uint32(0x80808080)
        for word in words
    ]
    return first + second, None


def _join_e2m1(a: Any, b: Any, c: Any, d: Any) -> Pairs:
    return [
        a
        | _right(b, 28)
        | c >> 6
        | (d & np.uint32(0x01000100)) << 6
        | (d & np.uint32(0x80C080C0)) >> 2
    ]


def _place_e2m1(words: Pairs) -> tuple[Pairs, None]:
    (word,), mask = words, np.uint32(0x81C081C0)
    last = word >> 6 & np.uint32(0x01000100) | word << 2 & np.uint32(0x80C080C0)
    return [word & mask, _right(word, 4) & mask, word << 6 & mask, last], None


def _pack_int4(pairs: Pairs) -> Pairs:
    a, b, c, d = (pair << 3 for pair in pairs)
    return [a | b << 4 | c << 8 | _right(d, 4)]


def _codes_int4(words: Pairs) -> Pairs:
    return [pair >> 3 for pair in _place_int4(words)[0]]


def _place_int4(words: Pairs) -> tuple[Pairs, None]:
    (word,) = words
    return [w & NIBBLES for w in (word, word >> 4, word >> 8, _right(word, 28))], None


def _pack_int8(pairs: Pairs) -> Pairs:
    return [pairs[i] << 8 | pairs[i + 2] for i in range(2)]


def _codes_int8(words: Pairs) -> Pairs:
    return [*(word >> 8 & BYTES for word in words), *(word & BYTES for word in words)]


def _place_int8(words: Pairs) -> tuple[Pairs, Pairs]:
    low, eighth = np.uint32(0x007F007F), np.uint32(0x00800080)
    shifted = [*(word >> 8 for word in words), *words]
    return [w & low | EXCESS for w in shifted], [w & eighth | EXCESS for w in shifted]


def _float(bits: int, shift: int, *, join: Any, place: Any, power: int, tiny: int) -> Element:
    """A float whose magnitude lies so many bits high in BF16."""
    return Element(
        words=bits // FRAGMENTS,
        pack=partial(_pack_float, join=join, bits=bits, shift=shift),
        codes=partial(_codes_float, place=place, bits=bits, shift=shift),
        place=place,
        power=power,
        tiny=tiny,
    )


E4M3 = _float(8, 4, join=_join_e4m3, place=_place_e4m3, power=120, tiny=9)
E5M2 = _float(8, 5, join=_join_e5m2, place=_place_e5m2, power=112, tiny=16)
E2M1 = _float(4, 6, join=_join_e2m1, place=_place_e2m1, power=126, tiny=1)
INT8 = Element(words=2, pack=_pack_int8, codes=_codes_int8, place=_place_int8)
INT4 = Element(words=1, pack=_pack_int4, codes=_codes_int4, place=_place_int4, power=127, unit=3)

ELEMENTS = {
    "FP8_E4M3": E4M3,
    "FP8_E5M2": E5M2,
    "FP4_E2M1": E2M1,
    **dict.fromkeys(("INT8", "INT8_EXCESS128", "UINT8"), INT8),
    **dict.fromkeys(("INT4", "INT4_EXCESS8", "UINT4"), INT4),
}
