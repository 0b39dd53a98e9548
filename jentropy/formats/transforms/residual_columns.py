"""Some columns have a second number in few bits, which is added to the first.

    places  [residuals], whole numbers: columns, none twice
    code    [rows, residuals]
    scale   [rows, groups]: a code's number is multiplied by that of its group

Setting `block` is the residuals of a group; the last may stick out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import RAW
from jentropy.formats.step import Step, namespace

from .transform import Transform


def _undo(step: Step, numbers: Any, arrays: Mapping[str, Any]) -> Any:
    xp, places = namespace(numbers), arrays["places"].astype(np.int32)
    scale = xp.repeat(arrays["scale"], step.setting("block"), axis=1)[:, : places.shape[0]]
    added = arrays["code"] * scale
    if xp is np:
        numbers, inside = numbers.copy(), (places >= 0) & (places < numbers.shape[1])
        numbers[:, places[inside]] += added[:, inside]
        return numbers
    return numbers.at[:, places].add(added, mode="drop")


def _fits(step: Step, rows: int, columns: int) -> bool:
    return step.arrays[1].shape[0] == rows


def _is_sound(step: Step) -> bool:
    places, code, scale = step.arrays
    block = step.setting("block")
    return (
        places.element.name == RAW
        and RAW not in (code.element.name, scale.element.name)
        and block > 0
        and len(code.shape) == 2
        and places.shape == code.shape[1:]
        and scale.shape == (code.shape[0], -(-code.shape[1] // block))
    )


RESIDUAL_COLUMNS = Transform(
    undo=_undo,
    settings=("block",),
    arrays=("places", "code", "scale"),
    fits=_fits,
    is_sound=_is_sound,
)
