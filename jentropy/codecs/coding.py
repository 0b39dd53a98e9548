"""How a tensor's chunks are coded: what a decoder must know beside the chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jentropy.formats import ElementFormat

# Takes the number of a chunk and what became of it, in the thread where that was done.
Then = Callable[[int, np.ndarray], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """A codec and its parameters for a tensor; hashable, the same for all chunks.

    Attributes:
      codec: a name in `CODECS`.
      head: the codec's parameters (tables, classes of rows and columns) in its own layout.
    """

    codec: str
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a codec knows of the tensor that a chunk is cut from.

    Attributes:
      element: format of its numbers, RAW where a number holds several codes.
      octets: whether the numbers are runs of packed codes of 4 or 8 bits; their bytes are symbols.
      pairs: whether a byte holds two codes of 4 bits.
      shape: of the tensor.
    """

    element: ElementFormat
    shape: tuple[int, ...]
    octets: bool = False
    pairs: bool = False

    @property
    def columns(self) -> int:
        """Length of the last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Runs of the last axis."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True, slots=True)
class Span:
    """Where a chunk lies in its tensor, and how the tensor is coded.

    Attributes:
      start: its first number.
      size: its numbers.
      layout: of the tensor.
      coding: of the tensor.
    """

    start: int
    size: int
    layout: Layout
    coding: Coding
