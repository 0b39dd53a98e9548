"""Codec `stored`: the numbers as they are, little-endian; for whatever will not shrink."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jentropy.errors import CorruptError
from jentropy.formats import code_dtype

from .coding import Coding, Layout

NAME = "stored"


def encode(
    chunks: Sequence[np.ndarray],
    starts: Sequence[int],
    layouts: Sequence[Layout],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Payloads, uint8 each."""
    return [np.ascontiguousarray(chunk).reshape(-1).view(np.uint8) for chunk in chunks]


def decode(
    payloads: Sequence[np.ndarray],
    starts: Sequence[int],
    sizes: Sequence[int],
    layouts: Sequence[Layout],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Chunks, `sizes` numbers of the layouts' code dtypes each."""
    chunks = []
    for payload, size, layout in zip(payloads, sizes, layouts, strict=True):
        expected = size * layout.element.dtype.itemsize
        if payload.size != expected:
            raise CorruptError("stored chunk", expected=f"{expected} bytes", found=payload.size)
        chunks.append(np.ascontiguousarray(payload).view(code_dtype(layout.element.dtype)))
    return chunks


def size_bound(size: int, layout: Layout) -> int:
    """Largest payload of a chunk, bytes."""
    return size * layout.element.dtype.itemsize
