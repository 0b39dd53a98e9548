"""Codec `deflate`: bytes of text files and headers, as zlib streams (RFC 1950) at level 9."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jentropy.errors import CorruptError

from . import cores
from .coding import Layout, Span, Then

NAME = "deflate"
LEVEL = 9


def encode(
    chunks: Sequence[np.ndarray],
    spans: Sequence[Span],
    then: Then,
) -> list[Any]:
    """What `then` makes of the payloads, uint8 each."""

    def one(i: int) -> Any:
        data = zlib.compress(np.ascontiguousarray(chunks[i]).tobytes(), LEVEL)
        return then(i, np.frombuffer(data, np.uint8))

    return cores.each(one, range(len(chunks)))


def decode(
    payloads: Sequence[np.ndarray],
    spans: Sequence[Span],
    outs: Sequence[np.ndarray],
    then: Then,
) -> list[Any]:
    """Writes the chunks, bytes; what `then` makes of them.

    A payload that holds more is not unpacked further.
    """

    def one(i: int) -> Any:
        size, inflater = spans[i].size, zlib.decompressobj()
        try:
            data = inflater.decompress(payloads[i].tobytes(), size + 1)
        except zlib.error as error:
            raise CorruptError(f"deflated chunk: {error}") from error
        if len(data) != size or not inflater.eof or inflater.unused_data:
            raise CorruptError("deflated chunk", expected=f"{size} bytes", found="others")
        outs[i][:] = np.frombuffer(data, np.uint8)
        return then(i, outs[i])

    return cores.each(one, range(len(payloads)))


def size_bound(size: int, layout: Layout) -> int:
    """Largest payload of a chunk, bytes: zlib stores what will not shrink."""
    return size + 5 * (size // 16383 + 1) + 16
