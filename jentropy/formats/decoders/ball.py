"""A code of 16 bits is a vector of eight columns out of QuIP#'s ball of E8 (`vectors.ball`).

Setting `columns` is the weight's, whose last vector may stick out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import ElementFormat
from jentropy.formats.step import Step, namespace
from jentropy.formats.vectors import DIMENSIONS, ball

from .decoder import Decoder


def _decode(step: Step, element: ElementFormat, codes: Any, arrays: Mapping[str, Any]) -> Any:
    vectors = namespace(codes).asarray(ball()).take(codes.astype(np.int32), axis=0)
    return vectors.reshape(codes.shape[0], -1)[:, : step.setting("columns")]


def _code_shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], -(-shape[-1] // DIMENSIONS))


def _shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], step.setting("columns"))


BALL = Decoder(
    decode=_decode,
    settings=("columns",),
    code_shape=_code_shape,
    shape=_shape,
    is_sound=lambda step, element: element.code_bits == 16,
)
