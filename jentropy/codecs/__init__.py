"""Codecs: symbols to words and back. `CODECS` are those of the archive.

An archive codec is a module with `encode(chunks, formats, codings)`, `decode(payloads, sizes,
formats, codings)` and `size_bound(size, format)`; to add one, write it and give it a line in
`CODECS` and in `choose`. A codec's name in a file means its exact layout: a change of layout is a
new name. `window12` is the fixed-rate code of resident BF16 weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from jentropy.entropy import Counts
from jentropy.errors import UnsupportedError
from jentropy.formats import ElementFormat

from . import rans_planes, stored
from .coding import Coding
from .lanes import FrequencyTable

CODECS: dict[str, ModuleType] = {module.NAME: module for module in (stored, rans_planes)}


def choose(element: ElementFormat, counts: Counts, *, nibbles: bool | None = None) -> Coding:
    """The smallest coding of a tensor with these counts.

    Args:
      nibbles: of RAW, whether its symbols are half bytes; None: whichever is smaller.
    """
    coding = rans_planes.choose(element, counts.slices, counts.weights, nibbles)
    return Coding(codec=stored.NAME) if coding is None else coding


def encode(
    chunks: Sequence[np.ndarray], formats: Sequence[ElementFormat], codings: Sequence[Coding]
) -> list[np.ndarray]:
    """Payloads of chunks (codes, of any tensors), uint8 each. Coded together: give it many."""
    return _by_codec(
        codings, lambda module, at: module.encode(*_pick(at, chunks, formats, codings))
    )


def decode(
    payloads: Sequence[np.ndarray],
    sizes: Sequence[int],
    formats: Sequence[ElementFormat],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Codes of payloads: the inverse of `encode`."""
    return _by_codec(
        codings, lambda module, at: module.decode(*_pick(at, payloads, sizes, formats, codings))
    )


def _pick(at: list[int], *columns: Sequence) -> list[list]:
    return [[column[i] for i in at] for column in columns]


def _by_codec(
    codings: Sequence[Coding], run: Callable[[ModuleType, list[int]], list[np.ndarray]]
) -> list[np.ndarray]:
    """Runs each codec once over its own items; results in the order of the items."""
    results: list = [None] * len(codings)
    for name in dict.fromkeys(coding.codec for coding in codings):
        if name not in CODECS:
            raise UnsupportedError("codec", expected=" or ".join(CODECS), found=repr(name))
        at = [i for i, coding in enumerate(codings) if coding.codec == name]
        for i, result in zip(at, run(CODECS[name], at), strict=True):
            results[i] = result
    return results


__all__ = ["CODECS", "Coding", "FrequencyTable", "choose", "decode", "encode"]
