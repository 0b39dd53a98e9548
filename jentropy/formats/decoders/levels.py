"""A code is a place in a table of numbers that the tensor brings along: centroids.

levels  [levels], at most 2^bits of a code; a code beyond them is the last one
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import RAW, TABLE_BITS, ElementFormat
from jentropy.formats.step import Step, namespace

from .decoder import Decoder


def _decode(step: Step, element: ElementFormat, codes: Any, arrays: Mapping[str, Any]) -> Any:
    xp, levels = namespace(codes), arrays["levels"]
    places = xp.minimum(codes.astype(np.int32), np.int32(levels.shape[0] - 1))
    return xp.asarray(levels).take(places, axis=0)


def _is_sound(step: Step, element: ElementFormat) -> bool:
    (levels,) = step.arrays
    return (
        element.code_bits <= TABLE_BITS
        and levels.element.name != RAW
        and len(levels.shape) == 1
        and 0 < levels.shape[0] <= 1 << element.code_bits
    )


LEVELS = Decoder(decode=_decode, arrays=("levels",), is_sound=_is_sound)
