"""Codecs: symbols to words and back. `CODECS` are those of the archive.

An archive codec is a module with `encode(chunks, spans, then)`, `decode(payloads, spans, outs,
then)` and `size_bound(size, layout)`; a `Span` is a chunk's place. To add one, write it and give it
a line in `CODECS` and in `choose`. A codec's name in a file means its exact layout: a change of
layout is a new name.
`window12` is the fixed-rate code of resident BF16 weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jentropy.errors import UnsupportedError
from jentropy.formats import code_dtype

from . import context, cutting, deflate, fit_context, fit_planes, planes, stored
from .coding import Coding, Layout, Span, Then
from .lanes import batch_symbols

CODECS: dict[str, ModuleType] = {
    module.NAME: module for module in (stored, deflate, planes, context)
}
TINY = 64  # numbers; coding fewer costs more than it saves
SMALL = 1 << 11  # numbers; fewer are not worth the tables of codec `context`


def choose(numbers: np.ndarray, slices: Sequence[np.ndarray], layout: Layout) -> Coding:
    """The smallest coding of a tensor.

    Args:
      numbers: of the layout's shape; a memory map is read in part.
      slices: counts of bits 16 i and up of the numbers, as `entropy.Counts` holds them; of octets
        int64[256], how often each byte occurs.
    """
    plain = Coding(codec=stored.NAME)
    if numbers.size < TINY:
        return plain
    raw_bytes = numbers.size * layout.element.dtype.itemsize
    histograms = slices if layout.octets else cutting.histograms(slices, layout)
    found = None if numbers.size < SMALL else fit_context.choose(numbers, slices[0], layout)
    constant = fit_planes.constant_of(numbers, slices, layout)
    if found is None or constant or fit_planes.least_bytes(histograms) < found[0]:
        own = fit_planes.choose(histograms, layout, constant)
        ways = [own, *([] if found is None else [found])]
        found = min(ways, key=lambda way: way[0])
    size, best = found
    worth = fit_planes.MIN_GAIN * size < (fit_planes.MIN_GAIN - 1) * raw_bytes
    return best if worth else plain


def encode(
    chunks: Sequence[np.ndarray],
    spans: Sequence[Span],
    then: Then = lambda _, payload: payload,
) -> list[Any]:
    """Payloads of chunks (numbers, of any tensors), uint8 each. Coded together: give it many.

    Args:
      then: takes the number of a chunk and its payload, in the thread that made it; `encode`
        returns what it returns.
    """
    return _by_codec(spans, lambda module, *rest: module.encode(*rest), (chunks, spans), then)


def decode(
    payloads: Sequence[np.ndarray],
    spans: Sequence[Span],
    outs: Sequence[np.ndarray] | None = None,
    then: Then = lambda _, numbers: numbers,
) -> list[Any]:
    """Numbers of payloads: the inverse of `encode`, `then` as there.

    Args:
      outs: where they are written; None: to new arrays.
    """
    if outs is None:
        outs = [np.empty(span.size, code_dtype(span.layout.element.dtype)) for span in spans]
    columns = payloads, spans, outs
    return _by_codec(spans, lambda module, *rest: module.decode(*rest), columns, then)


def _by_codec(
    spans: Sequence[Span],
    run: Callable[..., list[Any]],
    columns: Sequence[Sequence],
    then: Then,
) -> list[Any]:
    """Runs each codec once over its own items; results in the order of the items."""
    results: list = [None] * len(spans)
    names = [span.coding.codec for span in spans]
    for name in dict.fromkeys(names):
        if name not in CODECS:
            raise UnsupportedError("codec", expected=" or ".join(CODECS), found=repr(name))
        at = [i for i, own in enumerate(names) if own == name]
        own = [[column[i] for i in at] for column in columns]
        done = run(CODECS[name], *own, lambda i, found, at=at: then(at[i], found))
        for i, result in zip(at, done, strict=True):
            results[i] = result
    return results


__all__ = ["CODECS", "Coding", "Layout", "Span", "batch_symbols", "choose", "decode", "encode"]
