"""Several sources side by side: how alike their magnitudes are, how steady their fields."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jentropy.formats import RAW

from .reference import distance
from .report import EntropyReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Where a field's entropy lies in several sources.

    Example:
      >>> Band(least=2.5, most=2.75, sources=3).width
      0.25
    """

    least: float
    most: float
    sources: int

    @property
    def width(self) -> float:
        """Between the least and the most, bits per weight."""
        return self.most - self.least


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What several reports say together.

    Attributes:
      sources: of the reports.
      distances: the largest between normalised cumulative curves of magnitudes, of every pair of
        sources; without those that have no curve.
      fields: by format and field.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.arange(1, 9, dtype=np.float16)})
      >>> both = compare([report, report])
      >>> both.distances[0, 1], both.fields["FP16"]["exponent"].width
      (0.0, 0.0)
    """

    sources: tuple[str, ...]
    distances: dict[tuple[int, int], float]
    fields: dict[str, dict[str, Band]]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "sources": list(self.sources),
            "distances": [
                {"sources": list(pair), "distance": apart} for pair, apart in self.distances.items()
            ],
            "fields": {
                kind: {
                    name: {
                        "least_bits": band.least,
                        "most_bits": band.most,
                        "width_bits": band.width,
                        "sources": band.sources,
                    }
                    for name, band in fields.items()
                }
                for kind, fields in self.fields.items()
            },
        }


def compare(reports: Sequence[EntropyReport]) -> Comparison:
    """Compares sources.

    Args:
      reports: one of each.

    Returns:
      A `Comparison`, whose pairs are places in `reports`.

    Example:
      >>> import jentropy
      >>> compare([jentropy.analyze({})]).sources
      ('pytree',)
    """
    curves = [report.magnitudes.cumulative() for report in reports]
    apart = {
        (i, j): distance(curves[i], curves[j])
        for i, j in itertools.combinations(range(len(reports)), 2)
    }
    found: dict[str, dict[str, list[float]]] = {}
    for report in reports:
        for kind, row in report.formats.items():
            if kind == RAW:
                continue
            for name, field in row.fields.items():
                found.setdefault(kind, {}).setdefault(name, []).append(field.entropy_bits)
    return Comparison(
        sources=tuple(report.source for report in reports),
        distances={pair: one for pair, one in apart.items() if one is not None},
        fields={
            kind: {
                name: Band(least=min(bits), most=max(bits), sources=len(bits))
                for name, bits in fields.items()
            }
            for kind, fields in found.items()
        },
    )
