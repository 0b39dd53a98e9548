"""A table of levels in the middle of all codes, which go on evenly beyond it.

Of codes of b bits, level i of n is that of code 2^(b - 1) - floor(n / 2) + i. A code below or above
has the first or last level and as many differences of the first or last two as it is away.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jentropy.formats.element import RAW, ElementFormat
from jentropy.formats.step import SideArray, namespace

LARGEST = 8  # bits of a code


def extended(levels: Any, code_bits: int) -> Any:
    """The level of every code.

    Args:
      levels: float32[n], n of 2 or more, NumPy or JAX.
      code_bits: of a code.

    Returns:
      float32[2^code_bits], of the same kind.

    Example:
      >>> extended(np.float32([-2, 0, 1, 4]), 3).tolist()
      [-6.0, -4.0, -2.0, 0.0, 1.0, 4.0, 7.0, 10.0]
    """
    xp, count = namespace(levels), levels.shape[0]
    place = np.arange(1 << code_bits) - ((1 << code_bits - 1) - count // 2)
    inside = np.clip(place, 0, count - 1)
    below = np.minimum(place, 0).astype(np.float32) * (levels[1] - levels[0])
    above = np.maximum(place - (count - 1), 0).astype(np.float32) * (levels[-1] - levels[-2])
    return xp.asarray(levels)[inside] + (below + above)


def are_sound(levels: SideArray, element: ElementFormat) -> bool:
    """Whether an array may be the levels of codes of an element."""
    return (
        element.code_bits <= LARGEST
        and levels.element.name != RAW
        and len(levels.shape) == 1
        and 2 <= levels.shape[0] <= 1 << element.code_bits
    )


def taken(levels: Any, codes: Any, element: ElementFormat) -> Any:
    """Levels of codes, which are below 2^bits."""
    xp = namespace(codes)
    places = xp.minimum(codes.astype(np.int32), np.int32((1 << element.code_bits) - 1))
    return extended(levels, element.code_bits).take(places, axis=0)
