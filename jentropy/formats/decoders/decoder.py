"""What a decoder is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jentropy.formats.element import ElementFormat
from jentropy.formats.step import Step

Shape = tuple[int, ...]


def _same(step: Step, shape: Shape) -> Shape:
    return shape


def _sound(step: Step, element: ElementFormat) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A way from codes to numbers. Functions are about one matrix, NumPy or JAX.

    Attributes:
      decode: (step, element, codes [rows, c], its own arrays by role) -> float32 [rows, columns].
      settings: names of the step's settings.
      arrays: roles of its own arrays.
      code_shape: (step, shape of a weight) -> shape of its codes.
      shape: (step, shape of codes) -> shape of the weight: the way back.
      is_sound: (step, element of the codes) -> whether they go together.
      by_rows: whether rows are decoded each by itself, with the same arrays.

    Example:
      >>> from jentropy.formats.decoders import DECODERS
      >>> DECODERS["levels"].arrays
      ('levels',)
    """

    decode: Callable[[Step, ElementFormat, Any, Mapping[str, Any]], Any]
    settings: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    code_shape: Callable[[Step, Shape], Shape] = _same
    shape: Callable[[Step, Shape], Shape] = _same
    is_sound: Callable[[Step, ElementFormat], bool] = _sound
    by_rows: bool = True
