"""A product of two thin matrices, kept in more bits, is added.

left   [rows, rank]
right  [rank, columns]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy.formats.element import RAW
from jentropy.formats.step import Step

from .transform import Transform


def _undo(step: Step, numbers: Any, arrays: Mapping[str, Any]) -> Any:
    left, right = arrays["left"], arrays["right"]
    if isinstance(numbers, np.ndarray):
        return numbers + left @ right
    return numbers + jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _fits(step: Step, rows: int, columns: int) -> bool:
    left, right = step.arrays
    return (left.shape[0], right.shape[1]) == (rows, columns)


def _is_sound(step: Step) -> bool:
    left, right = step.arrays
    return (
        RAW not in (left.element.name, right.element.name)
        and len(left.shape) == len(right.shape) == 2
        and left.shape[1] == right.shape[0]
    )


LOW_RANK = Transform(undo=_undo, arrays=("left", "right"), fits=_fits, is_sound=_is_sound)
