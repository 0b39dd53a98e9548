"""Codec `stored`: the codes as they are, little-endian; for whatever will not shrink."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jentropy.errors import CorruptError
from jentropy.formats import ElementFormat, code_dtype

from .coding import Coding

NAME = "stored"


def encode(
    chunks: Sequence[np.ndarray], formats: Sequence[ElementFormat], codings: Sequence[Coding]
) -> list[np.ndarray]:
    """Payloads, uint8 each."""
    return [np.ascontiguousarray(chunk).reshape(-1).view(np.uint8) for chunk in chunks]


def decode(
    payloads: Sequence[np.ndarray],
    sizes: Sequence[int],
    formats: Sequence[ElementFormat],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Chunks, `sizes` elements of the formats' code dtypes each."""
    chunks = []
    for payload, size, element in zip(payloads, sizes, formats, strict=True):
        expected = size * element.code_bits // 8
        if payload.size != expected:
            raise CorruptError("stored chunk", expected=f"{expected} bytes", found=payload.size)
        chunks.append(np.ascontiguousarray(payload).view(code_dtype(element.dtype)))
    return chunks


def size_bound(size: int, element: ElementFormat) -> int:
    """Largest payload of a chunk, bytes."""
    return size * element.code_bits // 8
