"""What sources are called, and the colours of sources, formats and fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jentropy.entropy import EntropyReport
from jentropy.errors import shown

# In the order in which fields lie in a code; colours that the colour-blind can tell (Okabe, Ito).
FIELD_COLORS = {
    "sign": "#56b4e9",
    "exponent": "#e69f00",
    "mantissa": "#009e73",
    "code": "#8172b3",
    "scale": "#d55e00",
    "zero_point": "#a07850",
    "tensor_scale": "#cc79a7",
    "table": "#f0e442",
}
OTHER_COLOR = "#888888"
UNUSED = "#c9c9c9"
_GOLDEN = 137.508  # degrees: hues of any number of sources are far from one another
_LONGEST = 60  # characters of a label


def shortened(text: str, most: int = _LONGEST) -> str:
    """A text of no more characters, its middle left out.

    Example:
      >>> shortened("abcdefghij", 7)
      'abc…hij'
    """
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def listed(reports: EntropyReport | Sequence[EntropyReport]) -> list[EntropyReport]:
    """One report, or several, as a list."""
    return [reports] if isinstance(reports, EntropyReport) else list(reports)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a source is shown.

    Attributes:
      label: its name, without the folders that it lies in.
      hue: in degrees, the same for the models of a lab.
      size: from 0 for the smallest source to 1 for the largest.
      quantised: whether it has formats with scales.
    """

    label: str
    hue: float
    size: float
    quantised: bool


def looks_of(reports: Sequence[EntropyReport]) -> list[Look]:
    """How each source is shown.

    Labels are last parts of paths, of as many folders as tell them apart; sources that are alike
    are numbered.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
      >>> [look.label for look in looks_of([report, report])]
      ['pytree (1)', 'pytree (2)']
    """
    labels = _labels([shown(report.source) for report in reports])
    labs = [_lab(report.source) or label for report, label in zip(reports, labels, strict=True)]
    hues = {lab: i * _GOLDEN % 360 for i, lab in enumerate(dict.fromkeys(labs))}
    ranks = sorted({report.weights for report in reports})
    return [
        Look(
            label=label,
            hue=round(hues[lab], 1),
            size=ranks.index(report.weights) / max(1, len(ranks) - 1),
            quantised=any("scale" in row.fields for row in report.formats.values()),
        )
        for label, lab, report in zip(labels, labs, reports, strict=True)
    ]


def _labels(sources: list[str]) -> list[str]:
    parts = [source.removeprefix("hf://").rstrip("/").split("/") for source in sources]
    depths = [1] * len(sources)
    for _ in range(3):
        labels = ["/".join(p[-d:]) for p, d in zip(parts, depths, strict=True)]
        depths = [d + (labels.count(n) > 1) for d, n in zip(depths, labels, strict=True)]
    labels = [shortened("/".join(p[-d:])) for p, d in zip(parts, depths, strict=True)]
    if any(labels.count(label) > 1 and p[-1] for label, p in zip(labels, parts, strict=True)):
        alike = [labels[: i + 1].count(label) for i, label in enumerate(labels)]
        labels = [
            f"{label} ({n})" if labels.count(label) > 1 else label
            for label, n in zip(labels, alike, strict=True)
        ]
    return labels


def _lab(source: str) -> str:
    """Who made it, of a name on the hub."""
    owner, _, name = source.removeprefix("hf://").partition("/")
    return owner if source.startswith("hf://") and name else ""
