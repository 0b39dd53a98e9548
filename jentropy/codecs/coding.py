"""How a tensor's chunks are coded and where each lies: what a decoder knows beside its bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jentropy.formats import ElementFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """A codec and its parameters for a tensor; hashable, the same for all chunks.

    Attributes:
      codec: a name in `CODECS`.
      head: the codec's parameters (tables, classes of rows and columns) in its own layout.

    Example:
      >>> Coding(codec="stored")
      Coding(codec='stored', head=b'')
    """

    codec: str
    head: bytes = b""


# About how many bytes a tensor takes in a coding, and what makes that: of most it is not wanted.
Way = tuple[int, Callable[[], Coding]]


def is_packed(element: ElementFormat, dtype: np.dtype) -> bool:
    """Whether a number of a dtype holds several codes, or one that is narrower.

    The symbols of such numbers are their bytes.

    Args:
      element: format of the codes.
      dtype: of the numbers.

    Returns:
      False where a number is a code.

    Example:
      >>> from jentropy.formats import BF16, FP4_E2M1
      >>> is_packed(FP4_E2M1, np.dtype(np.uint8)), is_packed(BF16, np.dtype(np.uint16))
      (True, False)
    """
    return element.code_bits < 8 * dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A chunk of a tensor, and what its codec knows of that tensor.

    Attributes:
      start: its first number.
      size: its numbers.
      shape: of the tensor.
      element: format of the codes in the numbers.
      dtype: of the numbers: unsigned integers, or as it is where no integer is as wide.
      coding: of the tensor.

    Example:
      >>> from jentropy.formats import BF16
      >>> coding = Coding(codec="stored")
      >>> dtype = np.dtype(np.uint16)
      >>> span = Span(start=6, size=3, shape=(2, 2, 3), element=BF16, dtype=dtype, coding=coding)
      >>> span.rows, span.columns, span.is_packed
      (4, 3, False)
    """

    start: int
    size: int
    shape: tuple[int, ...]
    element: ElementFormat
    dtype: np.dtype
    coding: Coding

    @property
    def is_packed(self) -> bool:
        """See the function of this name."""
        return is_packed(self.element, self.dtype)

    @property
    def columns(self) -> int:
        """Length of the tensor's last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Runs of the tensor's last axis."""
        return math.prod(self.shape[:-1])
