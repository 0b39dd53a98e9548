"""Codec `stored`: the numbers as they are, little-endian; for whatever will not shrink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jentropy.errors import CorruptError
from jentropy.formats import code_dtype

from . import cores
from .coding import Layout, Span, Then

NAME = "stored"


def encode(
    chunks: Sequence[np.ndarray],
    spans: Sequence[Span],
    then: Then,
) -> list[Any]:
    """What `then` makes of the payloads, uint8 each."""

    def one(i: int) -> Any:
        return then(i, np.ascontiguousarray(chunks[i]).reshape(-1).view(np.uint8))

    return cores.each(one, range(len(chunks)))


def decode(
    payloads: Sequence[np.ndarray],
    spans: Sequence[Span],
    outs: Sequence[np.ndarray],
    then: Then,
) -> list[Any]:
    """Writes the chunks, numbers of the layouts' code dtypes; what `then` makes of them."""

    def one(i: int) -> Any:
        payload, dtype = payloads[i], spans[i].layout.element.dtype
        expected = spans[i].size * dtype.itemsize
        if payload.size != expected:
            raise CorruptError("stored chunk", expected=f"{expected} bytes", found=payload.size)
        outs[i][:] = np.ascontiguousarray(payload).view(code_dtype(dtype))
        return then(i, outs[i])

    return cores.each(one, range(len(payloads)))


def size_bound(size: int, layout: Layout) -> int:
    """Largest payload of a chunk, bytes."""
    return size * layout.element.dtype.itemsize
