"""Codec `stored`: the codes as they are, little-endian; for whatever will not shrink."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jentropy.errors import CorruptError
from jentropy.formats import Format, code_dtype

from .coding import Coding

NAME = "stored"


def encode(
    chunks: Sequence[np.ndarray], formats: Sequence[Format], codings: Sequence[Coding]
) -> list[np.ndarray]:
    """Payloads, uint8 each."""
    return [np.ascontiguousarray(chunk).reshape(-1).view(np.uint8) for chunk in chunks]


def decode(
    payloads: Sequence[np.ndarray],
    sizes: Sequence[int],
    formats: Sequence[Format],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Chunks, `sizes` elements of the formats' code dtypes each."""
    chunks = []
    for payload, size, number_format in zip(payloads, sizes, formats, strict=True):
        expected = size * number_format.code_bits // 8
        if payload.size != expected:
            raise CorruptError("stored chunk", expected=f"{expected} bytes", found=payload.size)
        chunks.append(np.ascontiguousarray(payload).view(code_dtype(number_format.dtype)))
    return chunks


def size_bound(size: int, number_format: Format) -> int:
    """Largest payload of a chunk, bytes."""
    return size * number_format.code_bits // 8
