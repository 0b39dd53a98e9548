"""Vectors of eight columns are points of lattice E8, coded number by number.

    levels  [levels], two or more, as `even_levels` has them
    words   [rows, vectors], whole numbers below 16

A vector's word of the Hamming code (`vectors.words`) tells which of its numbers are negated. With
levels about (2 k + 1/2) step these are the points of E8, moved by half a step: half a bit of each
weight is in the words, and the codes of all columns are alike. Columns that there are not fill the
last vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import RAW, ElementFormat
from jentropy.formats.step import Step, namespace
from jentropy.formats.vectors import DIMENSIONS, words

from .decoder import Decoder
from .even_levels import are_sound, taken


def _decode(step: Step, element: ElementFormat, codes: Any, arrays: Mapping[str, Any]) -> Any:
    xp, (rows, columns) = namespace(codes), codes.shape
    word = xp.minimum(arrays["words"], 15).astype(np.int32)
    negated = xp.asarray(words()).take(word, axis=0).reshape(rows, -1)[:, :columns]
    levels = taken(arrays["levels"], codes, element)
    return xp.where(negated == 1, -levels, levels)


def _is_sound(step: Step, element: ElementFormat) -> bool:
    levels, own = step.arrays
    return are_sound(levels, element) and own.element.name == RAW and len(own.shape) == 2


def _code_shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    rows, vectors = step.arrays[1].shape
    fits = -(-shape[-1] // DIMENSIONS) == vectors
    return (*shape[:-2], rows, shape[-1] if fits else vectors * DIMENSIONS)


E8 = Decoder(
    decode=_decode,
    arrays=("levels", "words"),
    code_shape=_code_shape,
    is_sound=_is_sound,
    by_rows=False,
)
