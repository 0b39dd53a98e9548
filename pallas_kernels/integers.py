"""How kernels read integer codes: eight bits signed, four bits unsigned."""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.formats import ElementFormat


@dataclass(frozen=True, slots=True)
class Stored:
    """How an integer is stored; its number is that minus `offset`, minus its zero point."""

    flipped: int  # bits of its code
    offset: int


INTEGERS = {
    "INT8": Stored(0, 0),
    "INT8_EXCESS128": Stored(0x80, 0),
    "UINT8": Stored(0x80, -128),
    "INT4": Stored(8, 8),
    "INT4_EXCESS8": Stored(0, 8),
    "UINT4": Stored(0, 0),
}


def is_integer(element: ElementFormat) -> bool:
    """Whether codes are integers that kernels read."""
    return element.name in INTEGERS


def offset_of(element: ElementFormat) -> int:
    """What a stored integer is above its number, but for the zero point."""
    return INTEGERS[element.name].offset if is_integer(element) else 0
