"""A code is a bit for each of several planes, which add or subtract a number of their own.

    scales  [planes, rows, groups]
    groups  [columns], whole numbers: the group of each column; one beyond the groups is the last

Bit p of a code says whether plane p adds (1) or subtracts (0) the number of its row and group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import RAW, ElementFormat
from jentropy.formats.step import Step, namespace

from .decoder import Decoder


def _decode(step: Step, element: ElementFormat, codes: Any, arrays: Mapping[str, Any]) -> Any:
    xp, scales = namespace(codes), arrays["scales"]
    group = xp.minimum(arrays["groups"], scales.shape[2] - 1).astype(np.int32)
    total: Any = None
    for plane in range(scales.shape[0]):
        scale = scales[plane].take(group, axis=1)
        part = xp.where((codes >> plane & 1) == 1, scale, -scale)
        total = part if total is None else total + part
    return total


def _is_sound(step: Step, element: ElementFormat) -> bool:
    scales, groups = step.arrays
    return (
        scales.element.name != RAW
        and groups.element.name == RAW
        and len(scales.shape) == 3
        and len(groups.shape) == 1
        and 0 < scales.shape[0] <= element.code_bits
        and scales.shape[2] > 0
    )


def _code_shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    scales, groups = step.arrays
    return (*shape[:-2], scales.shape[1], groups.shape[0])


PLANES = Decoder(
    decode=_decode,
    arrays=("scales", "groups"),
    code_shape=_code_shape,
    is_sound=_is_sound,
    by_rows=False,
)
