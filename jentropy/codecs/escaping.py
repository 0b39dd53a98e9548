"""Streams of bytes whose rarest escape: how they are stored, and put back.

    states, counts (`lanes.sections`)
    escapes        if the head says so: u4 number, u1 each
    words          u2, lane after lane

A decoder is shown an escape as a marker, a byte that no symbol is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import bits, lanes


class Stored(NamedTuple):
    """What is stored of a stream.

    Attributes:
      states, counts, words: as of `lanes.Decoding`.
      escaped: uint8, the bytes that escaped, in order.
    """

    states: np.ndarray
    counts: np.ndarray
    escaped: np.ndarray
    words: np.ndarray


def written(
    states: np.ndarray, counts: np.ndarray, words: np.ndarray, escaped: np.ndarray | None
) -> np.ndarray:
    """A stream as it is stored, uint8.

    Args:
      states, counts, words: as of `lanes.Encoding.finish`.
      escaped: uint8, the bytes that escape; None: none may.
    """
    parts = lanes.sections(states, counts)
    if escaped is not None:
        parts += [np.array([escaped.size], "<u4"), escaped]
    parts.append(words.astype("<u2", copy=False))
    return np.concatenate([part.view(np.uint8) for part in parts])


def read(reader: bits.Reader, size: int, *, escapes: bool) -> Stored:
    """What `written` stored of a stream of `size` symbols."""
    states, counts = lanes.read_sections(reader, size)
    escaped = reader.array("u1", reader.integer("<u4") if escapes else 0)
    return Stored(states, counts, escaped, reader.array("<u2", int(counts.sum())))


def put_back(symbols: np.ndarray, marker: int, escaped: np.ndarray) -> None:
    """Writes the bytes that escaped over their markers.

    Raises:
      CorruptError: more or fewer of them than markers.
    """
    missed = np.flatnonzero(symbols == marker)
    lanes.expect_escapes(missed.size, escaped.size)
    symbols[missed] = escaped
