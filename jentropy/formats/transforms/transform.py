"""What a transform is, on the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jentropy.formats.step import Step


def _sound(step: Step) -> bool:
    return True


def columns_fit(step: Step, rows: int, columns: int) -> bool:
    """Whether the first array of a step has a number for each column."""
    return step.arrays[0].shape == (columns,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """How a matrix is transformed back. Functions are about one matrix, NumPy or JAX.

    Attributes:
      undo: (step, numbers float32 [rows, columns], its own arrays by role) -> float32 of that
        shape, of the space that the weight came from.
      settings: names of the step's settings.
      arrays: roles of its own arrays.
      fits: (step, rows, columns) -> whether it is about matrices of that shape.
      is_sound: (step) -> whether its settings and the shapes of its arrays go together.

    Example:
      >>> from jentropy.formats.transforms import TRANSFORMS
      >>> TRANSFORMS["columns"].arrays
      ('scale',)
    """

    undo: Callable[[Step, Any, Mapping[str, Any]], Any]
    settings: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    fits: Callable[[Step, int, int], bool] = columns_fit
    is_sound: Callable[[Step], bool] = _sound
