"""Codecs: symbols to words and back. `CODECS` are those of the archive.

An archive codec is a module with `encode(chunks, spans)`, `decode(payloads, spans, outs)` and
`size_bound(span)`; a `Span` is a chunk's place. To add one, write it and give it a line in `CODECS`
and in `choose`. A codec's name in a file means its exact layout: a change of layout is a new name.
`window12` is the fixed-rate code of resident BF16 weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import ModuleType

import numpy as np

from jentropy import entropy
from jentropy.errors import UnsupportedError
from jentropy.formats import ElementFormat

from . import (
    byte_planes,
    context,
    context_head,
    deflate,
    fit_context,
    fit_planes,
    fit_scaled,
    fit_sparse,
    planes,
    scaled,
    sparse,
    stored,
)
from .calls import batch_symbols
from .coding import Coding, Span, Way, is_packed
from .difference import FORMS, Delta

CODECS: dict[str, ModuleType] = {
    module.NAME: module for module in (stored, deflate, planes, context, scaled, sparse)
}
TINY = 64  # numbers; coding fewer costs more than it saves
LEAST_GAIN = 64  # bytes that a tensor saves, for which it takes three tenths of a millisecond more
SMALL = 1 << 11  # numbers; fewer are not worth the tables of codec `context`


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What is looked at of a tensor to choose its coding: little, whatever its size is.

    Attributes:
      nbytes: of the tensor.
      sample: for codec `context`, if that may take it.
      planes: for codec `planes`; None: it is to be stored.
      others: bytes and codings by codecs `scaled` and `sparse`, if those may take it.

    Example:
      >>> Seen(nbytes=6).planes is None
      True
    """

    nbytes: int
    sample: fit_context.Sample | None = None
    planes: fit_planes.Planes | None = None
    others: Sequence[Way] = ()


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
    return choose_all([seen(numbers, slices, element)])[0][1]


def seen(numbers: np.ndarray, slices: Sequence[np.ndarray], element: ElementFormat) -> Seen:
    """What `choose_all` takes of a tensor.

    Args:
      numbers, slices, element: as of `choose`.

    Returns:
      What its codings are fitted to.

    Example:
      >>> from jentropy.formats import BF16
      >>> seen(np.zeros(3, np.uint16), [], BF16).nbytes
      6
    """
    if numbers.size < TINY:
        return Seen(nbytes=numbers.nbytes)
    packed = is_packed(element, numbers.dtype)
    sample = None
    if numbers.size >= SMALL and element in context_head.ELEMENTS:
        sample = fit_context.sample(numbers, fit_context.tops_of(slices[0], element), element)
    histograms = slices if packed else byte_planes.histograms(slices, element)
    return Seen(
        nbytes=numbers.nbytes,
        sample=sample,
        planes=fit_planes.Planes(
            histograms=histograms,
            element=element,
            constant=None if packed else fit_planes.constant_of(numbers, slices, element),
        ),
        others=[
            *fit_scaled.choose(numbers, histograms[0], element),
            *fit_sparse.choose(numbers, slices, element),
        ],
    )


def seen_by_counts(nbytes: int, slices: Sequence[np.ndarray], element: ElementFormat) -> Seen:
    """What `choose_all` takes of numbers that are counted but not there.

    Args:
      nbytes: of all.
      slices, element: as of `choose`; a number is a code.

    Returns:
      What codec `planes` is fitted to.

    Example:
      >>> from jentropy.formats import INT8
      >>> counts = np.bincount([7] * 500, minlength=256)
      >>> choose_all([seen_by_counts(500, [counts], INT8)])[0][0] < 50
      True
    """
    histograms = byte_planes.histograms(slices, element)
    return Seen(nbytes=nbytes, planes=fit_planes.Planes(histograms=histograms, element=element))


def seen_of_many(many: entropy.Many, tensors: Sequence[np.ndarray]) -> list[Seen]:
    """What `choose_all` takes of many small tensors, whose numbers are codes.

    Args:
      many: all of them.
      tensors: the numbers of each.

    Returns:
      What `seen` would give of each.

    Example:
      >>> from jentropy.formats import BF16
      >>> tensors = [np.zeros(100, np.uint16), np.zeros(7, np.uint16)]
      >>> choose_all(seen_of_many(entropy.many_of(tensors, BF16), tensors))[1]
      (14, Coding(codec='stored', head=b''))
    """
    element = many.element
    planes = [many.counted(part, 8) for part in byte_planes.split(many.codes, element)]
    may_have_constant = fit_planes.may_have_constants(many)
    may_be_sparse = fit_sparse.may_take(many.sizes, planes, element)
    # Where a number may tell of others, it may take less than its planes' entropies.
    tells = may_have_constant | may_be_sparse | (many.sizes >= SMALL)
    least = many.sizes * sum(many.entropies(plane) for plane in planes) / 8
    looked = []
    for n, numbers in enumerate(tensors):
        saved = numbers.nbytes - least[n]
        if numbers.size < TINY or (saved < LEAST_GAIN and not tells[n]):
            looked.append(Seen(nbytes=numbers.nbytes))
            continue
        constant, sample, histograms = None, None, [plane[n] for plane in planes]
        others = fit_scaled.choose(numbers, histograms[0], element)
        if may_have_constant[n] or may_be_sparse[n]:
            slices = entropy.measure(numbers, element).slices
            constant = fit_planes.constant_of(numbers, slices, element)
            others += fit_sparse.choose(numbers, slices, element)
        if numbers.size >= SMALL and element in context_head.ELEMENTS:
            sample = fit_context.sample(numbers, fit_context.tops_in(numbers, element), element)
        counted = fit_planes.Planes(histograms=histograms, element=element, constant=constant)
        looked.append(Seen(nbytes=numbers.nbytes, sample=sample, planes=counted, others=others))
    return looked


def choose_all(tensors: Sequence[Seen]) -> list[tuple[int, Coding]]:
    """The smallest coding of each tensor; what is fitted is fitted for all of them at once.

    Args:
      tensors: what was looked at of each.

    Returns:
      About how many bytes each takes; its coding, as of `choose`.

    Example:
      >>> choose_all([Seen(nbytes=6)])
      [(6, Coding(codec='stored', head=b''))]
    """
    ways: list[list[Way]] = [[] for _ in tensors]
    sampled = [n for n, one in enumerate(tensors) if one.sample is not None]
    samples = [one.sample for one in tensors if one.sample is not None]
    for n, way in zip(sampled, fit_context.choose(samples), strict=True):
        ways[n].append(way)
    by_planes = [
        (n, one.planes)
        for n, one in enumerate(tensors)
        if one.planes is not None
        and (
            not ways[n]
            or one.planes.constant
            or fit_planes.least_bytes(one.planes.histograms) < ways[n][0][0]
        )
    ]
    fitted = fit_planes.choose([planes for _, planes in by_planes])
    for (n, _), way in zip(by_planes, fitted, strict=True):
        ways[n].insert(0, way)
    for some, one in zip(ways, tensors, strict=True):
        some.extend(one.others)
    return [_best(some, one.nbytes) for some, one in zip(ways, tensors, strict=True)]


def _best(ways: list[Way], nbytes: int) -> tuple[int, Coding]:
    size, coding = min(ways, key=itemgetter(0), default=(nbytes, None))
    if coding is None or nbytes - size < LEAST_GAIN or not fit_planes.saves(size, nbytes):
        return nbytes, Coding(codec=stored.NAME)
    return size, coding()


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
    "Delta",
    "FORMS",
    "Seen",
    "Span",
    "batch_symbols",
    "choose",
    "choose_all",
    "decode",
    "encode",
    "is_packed",
    "seen",
    "seen_by_counts",
    "seen_of_many",
]
