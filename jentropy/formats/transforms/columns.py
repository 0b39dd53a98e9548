"""A scale per column: AWQ's and SmoothQuant's, folded into the weight, its inverse left here.

scale  [columns], multiplies
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.formats.element import RAW
from jentropy.formats.step import Step

from .transform import Transform


def _undo(step: Step, numbers: Any, arrays: Mapping[str, Any]) -> Any:
    return numbers * arrays["scale"][None, :]


def _is_sound(step: Step) -> bool:
    (scale,) = step.arrays
    return scale.element.name != RAW and len(scale.shape) == 1


COLUMNS = Transform(undo=_undo, arrays=("scale",), is_sound=_is_sound)
