"""A code is a bit for each of several planes, whose magnitudes are products of thin matrices.

    left   [planes, rows, rank]
    right  [planes, rank, columns]

Bit p of a code says whether plane p adds (1) or subtracts (0) its number of left @ right. These are
the blocks of X. Wang et al., BitStack, 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.formats.element import RAW, ElementFormat
from jentropy.formats.step import Step, namespace

from .decoder import Decoder


def _decode(step: Step, element: ElementFormat, codes: Any, arrays: Mapping[str, Any]) -> Any:
    xp, left, right = namespace(codes), arrays["left"], arrays["right"]
    total: Any = None
    for plane in range(left.shape[0]):
        size = left[plane][:, 0, None] * right[plane][0]
        for k in range(1, left.shape[2]):
            size = size + left[plane][:, k, None] * right[plane][k]
        part = xp.where((codes >> plane & 1) == 1, size, -size)
        total = part if total is None else total + part
    return total


def _is_sound(step: Step, element: ElementFormat) -> bool:
    left, right = step.arrays
    return (
        RAW not in (left.element.name, right.element.name)
        and len(left.shape) == len(right.shape) == 3
        and left.shape[0] == right.shape[0]
        and left.shape[2] == right.shape[1]
        and 0 < left.shape[0] <= element.code_bits
        and left.shape[2] > 0
    )


def _code_shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    left, right = step.arrays
    return (*shape[:-2], left.shape[1], right.shape[2])


SIGN_RANKS = Decoder(
    decode=_decode,
    arrays=("left", "right"),
    code_shape=_code_shape,
    is_sound=_is_sound,
    by_rows=False,
)
