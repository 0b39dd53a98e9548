"""Faults that are planted into the text of kernels: each must be found.

A fault is a name and a function of a kernel's text, which does not return the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial


def _last(text: str, pattern: str, new: str) -> str:
    """The last of something, which is of the consumers."""
    *_, found = re.finditer(pattern, text, re.S)
    return text[: found.start()] + found.expand(new) + text[found.end() :]


def _replaced(text: str, old: str, new: str) -> str:
    return re.sub(old, new, text, flags=re.S)


# WGMMA's descriptor of x is a constant with the swizzle in its two highest bits, and an address.
_DESCRIPTOR = r"(add\.s64 +\t?%rd\d+, %rd\d+, )(-46\d{17});"


def _descriptor(text: str, change: Callable[[int], int]) -> str:
    def other(found: re.Match[str]) -> str:
        return f"{found[1]}{change(int(found[2]))};"

    return re.sub(_DESCRIPTOR, other, text)


PRODUCT: dict[str, Callable[[str], str]] = {
    "no wait for copies": partial(_last, pattern=r"LAB_WAIT:.*?DONE:", new=""),
    "no wait for products": partial(
        _replaced, old=r"(wgmma\.wait_group\.sync\.aligned\s+)\d", new=r"\g<1>7"
    ),
    "registers are not fenced": partial(_replaced, old=r"wgmma\.fence\.sync\.aligned;", new=""),
    "the next stage's barrier": partial(
        _last, pattern=r"(try_wait[^;]*?)\[(%r\d+)\]", new=r"\1[\2+8]"
    ),
    "x of another swizzle": partial(_descriptor, change=lambda d: d - (1 << 62)),
    "x 16 bytes on": partial(_descriptor, change=lambda d: d + 1),
    "rows of x 16 bytes further apart": partial(_descriptor, change=lambda d: d + (1 << 32)),
    "two registers of A exchanged": partial(
        _replaced, old=r"\{(%r\d+),(%r\d+),(%r\d+),(%r\d+)\}, %rd", new=r"{\1,\3,\2,\4}, %rd"
    ),
    "a stage that nobody hands back": partial(
        _replaced, old=r"mbarrier\.arrive\.release\.cta\.shared::cta\.b64[^;]*;", new=""
    ),
    "no barrier before the end of setting up": partial(_replaced, old=r"bar\.sync\s+0;", new=""),
}
PARTS: dict[str, Callable[[str], str]] = {
    "parts are not fenced": partial(
        _replaced, old=r"fence\.acq_rel\.gpu;([^;]*bar\.warp)", new=r"\1"
    ),
    "parts of others are not acquired": partial(
        _replaced,
        old=r"(shfl\.sync\.idx\.b32 %r\d+, before[^;]*;[^;]*)fence\.acq_rel\.gpu;",
        new=r"\1",
    ),
    "warps count twice": partial(_replaced, old=r"(atom\.[^;]*, )1;", new=r"\g<1>2;"),
}
DECODE: dict[str, Callable[[str], str]] = {
    "numbers are not fenced": partial(_replaced, old=r"fence\.proxy\.async[^;]*;", new=""),
    "no wait for numbers that leave": partial(
        _replaced, old=r"cp\.async\.bulk\.wait_group\.read[^;]*;", new=""
    ),
}
