"""Columns in another order.

places  [columns], whole numbers: where each column of the weight stands in what is coded
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import RAW
from jentropy.formats.step import Step, namespace

from .transform import Transform


def _undo(step: Step, numbers: Any, arrays: Mapping[str, Any]) -> Any:
    places = namespace(numbers).minimum(arrays["places"], numbers.shape[1] - 1)
    return numbers.take(places.astype(np.int32), axis=1)


def _is_sound(step: Step) -> bool:
    (places,) = step.arrays
    return places.element.name == RAW and len(places.shape) == 1


PERMUTATION = Transform(undo=_undo, arrays=("places",), is_sound=_is_sound)
