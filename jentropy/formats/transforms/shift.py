"""What is subtracted from every channel of a layer's input before it is rounded; the weight is left
as it is, and its product with the shift is part of the layer's bias.

    shift  [columns]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.formats.step import Step

from .columns import COLUMNS
from .transform import Transform


def _undo(step: Step, numbers: Any, arrays: Mapping[str, Any]) -> Any:
    return numbers


SHIFT = Transform(undo=_undo, arrays=("shift",), is_sound=COLUMNS.is_sound)
