"""What the page's script draws: tensors that waste most, and used shares by layer and role."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import Any

from jentropy.entropy import EntropyReport
from jentropy.formats import RAW
from jentropy.report.labels import Look, shortened
from jentropy.report.layers import layers

TENSORS = 2000
_LONGEST = 120  # characters of a tensor's name


def tensors(reports: Sequence[EntropyReport], most: int = TENSORS) -> list[list[Any]]:
    """Rows of those that waste most bytes, the worst first.

    Args:
      reports: of all sources.
      most: rows.

    Returns:
      Lists of source, tensor, role, format, shape, weights, allocated and entropy bits, wasted
      bytes; what the head in `page.js` names.
    """
    every = (
        (tensor.wasted_bytes, -i, place, tensor)
        for place, report in enumerate(reports)
        for i, tensor in enumerate(report.tensors)
        if tensor.format != RAW
    )
    worst = heapq.nlargest(most, every, key=lambda row: row[:3])
    return [
        [
            place,
            shortened(tensor.name, _LONGEST),
            tensor.role.name if tensor.role else "",
            tensor.format,
            "x".join(map(str, tensor.shape)),
            tensor.weights,
            round(tensor.allocated_bits, 3),
            round(tensor.entropy_bits, 3),
            round(wasted),
        ]
        for wasted, _, place, tensor in worst
    ]


def heat(reports: Sequence[EntropyReport], looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Maps of the sources that have numbered layers."""
    maps = ((look.label, layers(report)) for report, look in zip(reports, looks, strict=True))
    return [
        {
            "label": label,
            "roles": one.roles,
            "layers": one.numbers,
            "shares": one.shares,
            "ends": one.ends,
        }
        for label, one in maps
        if one is not None
    ]


def dropped(reports: Sequence[EntropyReport], shown: int) -> int:
    """Tensors that have no row."""
    every = itertools.chain.from_iterable(report.tensors for report in reports)
    return sum(tensor.format != RAW for tensor in every) - shown
