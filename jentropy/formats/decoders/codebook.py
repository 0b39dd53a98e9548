"""Codes are places in codebooks of vectors; one is a vector of columns, several add up to it.

    codebooks  [groups, books, size, dimensions]

Codes of a row are those of its first vector in all books, then of the next vector. Vector v is of
group v mod groups: 1 for codebooks that all share, the number of vectors for product quantisation,
where each has its own. Setting `columns` is the weight's, whose last vector may stick out. A code
beyond its book is the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.formats.element import RAW, TABLE_BITS, ElementFormat
from jentropy.formats.step import Step, namespace

from .decoder import Decoder


def _decode(step: Step, element: ElementFormat, codes: Any, arrays: Mapping[str, Any]) -> Any:
    xp, columns = namespace(codes), step.setting("columns")
    groups, books, size, dimensions = arrays["codebooks"].shape
    flat = xp.asarray(arrays["codebooks"]).reshape(-1, dimensions)
    places = xp.minimum(codes.astype(np.int32), np.int32(size - 1))
    places = places.reshape(codes.shape[0], -1, books)
    first = np.arange(places.shape[1]) % groups * books
    total: Any = None
    for book in range(books):
        part = flat.take(places[:, :, book] + (first + book).astype(np.int32) * size, axis=0)
        total = part if total is None else total + part
    return total.reshape(codes.shape[0], -1)[:, :columns]


def _code_shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    _, books, _, dimensions = step.arrays[0].shape
    return (*shape[:-1], -(-shape[-1] // dimensions) * books)


def _shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], step.setting("columns"))


def _is_sound(step: Step, element: ElementFormat) -> bool:
    (books,) = step.arrays
    return (
        element.code_bits <= TABLE_BITS
        and books.element.name != RAW
        and len(books.shape) == 4
        and all(books.shape)
        and books.shape[2] <= 1 << element.code_bits
    )


CODEBOOK = Decoder(
    decode=_decode,
    settings=("columns",),
    arrays=("codebooks",),
    code_shape=_code_shape,
    shape=_shape,
    is_sound=_is_sound,
)
