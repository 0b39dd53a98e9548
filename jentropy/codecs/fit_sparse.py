"""How an encoder fits codec `sparse` to a tensor: its common number, and what is left without it.

Nothing here is needed to decode. Integers throughout, so that every machine decides alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from jentropy.formats import ElementFormat, raw_element

from . import byte_planes, calls, fit_classes, fit_context, fit_planes
from .coding import Coding, Way, is_packed
from .context_head import ELEMENTS
from .sparse import BYTE, NAME, Head, are_common, mask_of, write_head

SMALL = 1 << 11  # numbers; fewer are not worth the tables of two codecs
COMMON = 32  # a number that is more than one part in this of a tensor may be its common one
SAMPLE = 1 << 18  # numbers of a large tensor whose mask is looked at
PIECE = 1 << 14  # numbers that are looked at together, a multiple of 8


def choose(numbers: np.ndarray, slices: Sequence[np.ndarray], element: ElementFormat) -> list[Way]:
    """About how many bytes a tensor takes, and its coding, if it may have one.

    Args:
      numbers: unsigned integers, a code each; a memory map is read in part.
      slices: counts of the codes, of which there is one slice of at most 16 bits.
      element: format of the codes.
    """
    if numbers.size < SMALL or len(slices) != 1 or is_packed(element, numbers.dtype):
        return []
    counts, negatives = slices[0], np.zeros(1, np.int64)
    most = int(counts.argmax())
    if numbers.size > 2 * COMMON * counts[most]:  # nor with its negative
        return []
    if element.field_bits("sign"):
        counts, negatives = np.split(counts, 2)
    ways = [_way(numbers, slices[0], element, most, signed=False)]
    common = int((counts + negatives).argmax())
    if min(counts[common], negatives[common % negatives.size]) > 0:
        ways.append(_way(numbers, slices[0], element, common, signed=True))
    return [way for way in ways if way is not None]


def _way(
    numbers: np.ndarray, counts: np.ndarray, element: ElementFormat, common: int, *, signed: bool
) -> Way | None:
    """With a common number, if it is that common."""
    left = counts.copy()
    left[[common, common + counts.size // 2] if signed else common] = 0
    omitted = numbers.size - int(left.sum())
    if not numbers.size <= COMMON * omitted < COMMON * numbers.size:
        return None
    mask_bytes, mask = _of_mask(numbers, common, signed=signed)
    others_bytes, others = min(_of_others(left, element), key=itemgetter(0))
    signs = -(-omitted // 8) if signed else 0
    chunks = -(-numbers.size // (calls.LANES * calls.LANE))

    def coding() -> Coding:
        head = Head(common=common, signed=signed, mask=mask(), others=others())
        return Coding(codec=NAME, head=write_head(head, numbers.dtype))

    return mask_bytes + others_bytes + signs + 8 * chunks, coding


def may_take(
    sizes: np.ndarray, histograms: Sequence[np.ndarray], element: ElementFormat
) -> np.ndarray:
    """Whether each of many tensors may have a coding, bool[tensors]; most others have none.

    Args:
      sizes: int64[tensors], numbers of each.
      histograms: int64[tensors, 256] of every plane's bytes.
      element: format of the codes; a number is a code.
    """
    most = np.min([counts.max(axis=1) for counts in histograms], axis=0)
    signs = 2 if element.field_bits("sign") else 1
    return (sizes >= SMALL) & (sizes <= signs * COMMON * most)


def _of_mask(numbers: np.ndarray, common: int, *, signed: bool) -> Way:
    """Of a large tensor from a sample, beside which every byte may occur."""
    flat, counts = numbers.reshape(-1), np.zeros(256, np.int64)
    stride = max(1, flat.size // SAMPLE)
    for place in fit_classes.places(-(-flat.size // PIECE), stride).tolist():
        part = np.asarray(flat[place * PIECE : (place + 1) * PIECE])
        mask = mask_of(are_common(part, common, signed=signed))
        counts += np.bincount(mask, minlength=counts.size)
    counts = counts * stride + (stride > 1)
    element = raw_element(BYTE)
    return fit_planes.choose([fit_planes.Planes(histograms=[counts], element=element)])[0]


def _of_others(counts: np.ndarray, element: ElementFormat) -> list[Way]:
    histograms = byte_planes.histograms([counts], element)
    ways = fit_planes.choose([fit_planes.Planes(histograms=histograms, element=element)])
    if element in ELEMENTS:
        tops = fit_context.tops_of(counts, element)
        ways += fit_context.choose([fit_context.sample_of_counts(tops, element)])
    return ways
