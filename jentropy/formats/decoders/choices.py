"""A code is a place in one of several tables, which each group of columns chooses: BitMoD.

levels  [tables, levels], at most 2^bits of a code; a code beyond them is the last one
choice  whole numbers [rows, groups]: the table of a row's columns `group * i` and up
group   setting: columns of a group
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import RAW, TABLE_BITS, ElementFormat
from jentropy.formats.step import Step, namespace

from .decoder import Decoder


def _decode(step: Step, element: ElementFormat, codes: Any, arrays: Mapping[str, Any]) -> Any:
    xp, levels, choice = namespace(codes), arrays["levels"], arrays["choice"]
    tables, size = levels.shape
    groups = np.arange(codes.shape[1]) // step.setting("group")
    table = xp.minimum(choice.astype(np.int32), np.int32(tables - 1)).take(groups, axis=1)
    place = xp.minimum(codes.astype(np.int32), np.int32(size - 1))
    return xp.asarray(levels).reshape(-1).take(table * np.int32(size) + place, axis=0)


def _is_sound(step: Step, element: ElementFormat) -> bool:
    levels, choice = step.arrays
    return (
        element.code_bits <= TABLE_BITS
        and levels.element.name != RAW
        and choice.element.name == RAW
        and choice.element.dtype.kind == "u"
        and len(levels.shape) == len(choice.shape) == 2
        and levels.shape[0] > 0
        and 0 < levels.shape[1] <= 1 << element.code_bits
        and step.setting("group") > 0
    )


def _code_shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    (rows, groups), group = step.arrays[1].shape, step.setting("group")
    fits = -(-shape[-1] // group) == groups
    return (*shape[:-2], rows, shape[-1] if fits else groups * group)


CHOICES = Decoder(
    decode=_decode,
    settings=("group",),
    arrays=("levels", "choice"),
    code_shape=_code_shape,
    is_sound=_is_sound,
    by_rows=False,
)
