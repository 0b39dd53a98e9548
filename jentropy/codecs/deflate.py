"""Codec `deflate`: bytes of text files and headers, as zlib streams (RFC 1950) at level 9."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from jentropy.errors import CorruptError

from . import threads
from .coding import Span

NAME = "deflate"
LEVEL = 9


def encode(chunks: Sequence[np.ndarray], spans: Sequence[Span]) -> list[np.ndarray]:
    """Payloads of chunks of bytes, uint8 each."""
    return threads.each(_encode, chunks)


def _encode(chunk: np.ndarray) -> np.ndarray:
    return np.frombuffer(zlib.compress(np.ascontiguousarray(chunk).data, LEVEL), np.uint8)


def decode(
    payloads: Sequence[np.ndarray], spans: Sequence[Span], outs: Sequence[np.ndarray]
) -> None:
    """Writes the bytes of payloads; one that holds more is not unpacked further.

    Raises:
      CorruptError: a payload that is no stream of as many bytes.
    """
    threads.each(_decode, payloads, outs)


def _decode(payload: np.ndarray, out: np.ndarray) -> None:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(payload.tobytes(), out.size + 1)
    except zlib.error as error:
        raise CorruptError(f"deflated chunk: {error}") from error
    if len(data) != out.size or not inflater.eof or inflater.unused_data:
        raise CorruptError("deflated chunk", expected=f"{out.size} bytes", found="others")
    out[:] = np.frombuffer(data, np.uint8)


def size_bound(span: Span) -> int:
    """Largest payload of a chunk, bytes: zlib stores what will not shrink."""
    return span.size + 5 * (span.size // 16383 + 1) + 16
