"""Codec `stored`: the numbers as they are, little-endian; for whatever will not shrink."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jentropy.errors import CorruptError

from . import threads
from .coding import Span

NAME = "stored"


def encode(chunks: Sequence[np.ndarray], spans: Sequence[Span]) -> list[np.ndarray]:
    """Payloads of chunks, uint8 each: views of what is contiguous."""
    return [np.ascontiguousarray(chunk).reshape(-1).view(np.uint8) for chunk in chunks]


def decode(
    payloads: Sequence[np.ndarray], spans: Sequence[Span], outs: Sequence[np.ndarray]
) -> None:
    """Writes the numbers of payloads.

    Raises:
      CorruptError: a payload of the wrong length.
    """
    threads.each(_decode, payloads, outs)


def _decode(payload: np.ndarray, out: np.ndarray) -> None:
    if payload.size != out.nbytes:
        raise CorruptError("stored chunk", expected=f"{out.nbytes} bytes", found=payload.size)
    out.view(np.uint8)[:] = payload


def size_bound(span: Span) -> int:
    """Largest payload of a chunk, bytes."""
    return span.size * span.dtype.itemsize
