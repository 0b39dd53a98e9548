"""Some weights are kept apart, in more bits, and put in the stead of what is coded there.

    gaps    [outliers], whole numbers: of the first its place, row after row; of each other one the
            places from the one before, 1 or more
    values  [outliers]

Where two lie further apart than a gap can say, weights in between are outliers too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import RAW
from jentropy.formats.step import Step

from .transform import Transform


def _undo(step: Step, numbers: Any, arrays: Mapping[str, Any]) -> Any:
    places = arrays["gaps"].astype(np.int32).cumsum(dtype=np.int32)
    flat, values = numbers.reshape(-1), arrays["values"]
    if isinstance(numbers, np.ndarray):
        inside = (places >= 0) & (places < flat.size)
        flat = flat.copy()
        flat[places[inside]] = values[inside]
    else:
        flat = flat.at[places].set(values, mode="drop")
    return flat.reshape(numbers.shape)


def _is_sound(step: Step) -> bool:
    gaps, values = step.arrays
    return (
        gaps.element.name == RAW
        and values.element.name != RAW
        and len(gaps.shape) == 1
        and gaps.shape == values.shape
    )


OUTLIERS = Transform(
    undo=_undo,
    arrays=("gaps", "values"),
    fits=lambda step, rows, columns: rows * columns < 1 << 31,
    is_sound=_is_sound,
)
