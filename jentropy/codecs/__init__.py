"""Codecs: symbols to words and back. `CODECS` are those of the archive.

An archive codec is a module with `encode(chunks, spans)`, `decode(payloads, spans, outs)` and
`size_bound(span)`; a `Span` is a chunk's place. To add one, write it and give it a line in `CODECS`
and in `choose`. A codec's name in a file means its exact layout: a change of layout is a new name.
`window12` is the fixed-rate code of resident BF16 weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np

from jentropy.errors import UnsupportedError
from jentropy.formats import ElementFormat

from . import (
    byte_planes,
    context,
    deflate,
    fit_context,
    fit_planes,
    fit_scaled,
    planes,
    scaled,
    stored,
)
from .calls import batch_symbols
from .coding import Coding, Span, is_packed

CODECS: dict[str, ModuleType] = {
    module.NAME: module for module in (stored, deflate, planes, context, scaled)
}
TINY = 64  # numbers; coding fewer costs more than it saves
SMALL = 1 << 11  # numbers; fewer are not worth the tables of codec `context`


def choose(numbers: np.ndarray, slices: Sequence[np.ndarray], element: ElementFormat) -> Coding:
    """The smallest coding of a tensor.

    Args:
      numbers: unsigned integers of any shape; a memory map is read in part.
      slices: counts of bits 16 i and up of the numbers, as `entropy.Counts` holds them; of packed
        codes int64[256], how often each byte occurs.
      element: format of the codes in the numbers.

    Returns:
      A codec and what it needs beside the codes; `stored` where none would save enough.

    Example:
      >>> from jentropy import entropy, formats
      >>> numbers = np.full((300, 300), 0x3F80, np.uint16)  # ones
      >>> choose(numbers, entropy.measure(numbers, formats.BF16).slices, formats.BF16).codec
      'planes'
    """
    stored_as_is = Coding(codec=stored.NAME)
    if numbers.size < TINY:
        return stored_as_is
    packed = is_packed(element, numbers.dtype)
    histograms = slices if packed else byte_planes.histograms(slices, element)
    ways = []
    if numbers.size >= SMALL:
        ways = fit_context.choose(numbers, slices[0], element)
    constant = None if packed else fit_planes.constant_of(numbers, slices, element)
    if not ways or constant or fit_planes.least_bytes(histograms) < ways[0][0]:
        ways.insert(0, fit_planes.choose(histograms, element, constant))
    if numbers.dtype.itemsize == 1:
        ways += fit_scaled.choose(numbers, histograms[0], element)
    size, best = min(ways, key=lambda way: way[0])
    gain = fit_planes.MIN_GAIN
    return best if gain * size < (gain - 1) * numbers.nbytes else stored_as_is


def encode(chunks: Sequence[np.ndarray], spans: Sequence[Span]) -> list[np.ndarray]:
    """Payloads of chunks, which are coded together: give it many.

    Args:
      chunks: numbers of each, of any tensors, in one dimension.
      spans: where each lies, and how its tensor is coded.

    Returns:
      uint8[bytes] each.

    Raises:
      UnsupportedError: a codec that there is not.

    Example:
      >>> from jentropy.formats import BF16
      >>> numbers = np.arange(3, dtype=np.uint16)
      >>> coding = Coding(codec="stored")
      >>> span = Span(start=0, size=3, shape=(3,), element=BF16, dtype=numbers.dtype, coding=coding)
      >>> payloads = encode([numbers], [span])
      >>> payloads[0].tolist(), decode(payloads, [span])[0].tolist()
      ([0, 0, 1, 0, 2, 0], [0, 1, 2])
    """
    payloads: dict[int, np.ndarray] = {}
    for codec, places in _by_codec(spans):
        coded = codec.encode([chunks[i] for i in places], [spans[i] for i in places])
        payloads.update(zip(places, coded, strict=True))
    return [payloads[i] for i in range(len(spans))]


def decode(
    payloads: Sequence[np.ndarray],
    spans: Sequence[Span],
    outs: Sequence[np.ndarray] | None = None,
) -> Sequence[np.ndarray]:
    """Numbers of payloads: the inverse of `encode`.

    Args:
      payloads: uint8[bytes] each.
      spans: of each.
      outs: where they are written, of the spans' dtypes; None: to new arrays.

    Returns:
      What was written.

    Raises:
      UnsupportedError: a codec that there is not.
      CorruptError: a payload that its codec did not write.

    Example:
      >>> from jentropy.formats import BF16
      >>> dtype, coding = np.dtype(np.uint16), Coding(codec="stored")
      >>> span = Span(start=0, size=2, shape=(2,), element=BF16, dtype=dtype, coding=coding)
      >>> decode([np.array([1, 0, 2, 0], np.uint8)], [span])[0].tolist()
      [1, 2]
    """
    if outs is None:
        outs = [np.empty(span.size, span.dtype) for span in spans]
    for codec, places in _by_codec(spans):
        codec.decode(*([column[i] for i in places] for column in (payloads, spans, outs)))
    return outs


def _by_codec(spans: Sequence[Span]) -> Iterator[tuple[ModuleType, list[int]]]:
    """Each codec, and which of the spans it codes."""
    names = [span.coding.codec for span in spans]
    for name in dict.fromkeys(names):
        if name not in CODECS:
            raise UnsupportedError("codec", expected=" or ".join(CODECS), found=repr(name))
        yield CODECS[name], [i for i, other in enumerate(names) if other == name]


__all__ = [
    "CODECS",
    "Coding",
    "Span",
    "batch_symbols",
    "choose",
    "decode",
    "encode",
    "is_packed",
]
