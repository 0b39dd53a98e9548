"""Codec `deflate`: bytes of text files and headers, as zlib streams (RFC 1950) at level 9."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from jentropy.errors import CorruptError

from .coding import Coding, Layout

NAME = "deflate"
LEVEL = 9


def encode(
    chunks: Sequence[np.ndarray],
    starts: Sequence[int],
    layouts: Sequence[Layout],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Payloads, uint8 each."""
    return [
        np.frombuffer(zlib.compress(np.ascontiguousarray(chunk).tobytes(), LEVEL), np.uint8)
        for chunk in chunks
    ]


def decode(
    payloads: Sequence[np.ndarray],
    starts: Sequence[int],
    sizes: Sequence[int],
    layouts: Sequence[Layout],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Chunks, `sizes` bytes each; a payload that holds more is not unpacked further."""
    chunks = []
    for payload, size in zip(payloads, sizes, strict=True):
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(payload.tobytes(), size + 1)
        except zlib.error as error:
            raise CorruptError(f"deflated chunk: {error}") from error
        if len(data) != size or not inflater.eof or inflater.unused_data:
            raise CorruptError("deflated chunk", expected=f"{size} bytes", found="others")
        chunks.append(np.frombuffer(data, np.uint8))
    return chunks


def size_bound(size: int, layout: Layout) -> int:
    """Largest payload of a chunk, bytes: zlib stores what will not shrink."""
    return size + 5 * (size // 16383 + 1) + 16
