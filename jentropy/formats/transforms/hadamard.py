"""A Hadamard rotation of blocks of an axis, after signs of its own for every place of that axis.

    signs  [axis], whole numbers: 1 where a number was negated before it was rotated

Settings: `axis`, 0 for rows and 1 for columns; `block`, which divides it: 2^a, or 2^a times the
order of a matrix of Paley's (`hadamard.base`). The rotation is symmetric but for that matrix, and
orthogonal. Powers of two are sums and differences in one order, the same in NumPy and JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import RAW
from jentropy.formats.hadamard import is_order, rotated
from jentropy.formats.step import Step, namespace

from .transform import Transform


def _undo(step: Step, numbers: Any, arrays: Mapping[str, Any]) -> Any:
    xp, columns = namespace(numbers), step.setting("axis") == 1
    lines = numbers if columns else numbers.T
    lines = rotated(lines, step.setting("block"), back=True)
    lines = xp.where(arrays["signs"] & 1 == 1, -lines, lines).astype(np.float32)
    return lines if columns else lines.T


def _fits(step: Step, rows: int, columns: int) -> bool:
    return step.arrays[0].shape == ((rows, columns)[step.setting("axis")],)


def _is_sound(step: Step) -> bool:
    (signs,) = step.arrays
    block = step.setting("block")
    return (
        signs.element.name == RAW
        and len(signs.shape) == 1
        and step.setting("axis") < 2
        and is_order(block)
        and signs.shape[0] % block == 0
    )


HADAMARD = Transform(
    undo=_undo,
    settings=("axis", "block"),
    arrays=("signs",),
    fits=_fits,
    is_sound=_is_sound,
)
