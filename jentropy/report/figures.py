"""The figures of a report, drawn with Matplotlib (extra `report`).

Two figures per report: where the bits go (one bar per format, each field's entropy against what it
is allocated) and how large the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from jentropy.entropy import EntropyReport
from jentropy.errors import UnsupportedError

Figure: TypeAlias = Any  # matplotlib's, which is imported at first use

COLORS = {
    "sign": "#4c72b0",
    "exponent": "#dd8452",
    "mantissa": "#55a868",
    "code": "#8172b3",
    "scale": "#c44e52",
    "zero_point": "#937860",
    "tensor_scale": "#da8bc3",
}
UNUSED = "#e6e6e6"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that belongs to no window.

    Args:
      width, height: in inches.

    Raises:
      UnsupportedError: Matplotlib is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise UnsupportedError("Matplotlib", hint="install the extra 'report'") from error
    return figure.Figure(figsize=(width, height), layout="constrained")


def bits_figure(report: EntropyReport) -> Figure:
    """Where the bits go: entropy of each field against its allocation, bits per weight.

    Args:
      report: a bar for each of its formats.

    Returns:
      A figure of Matplotlib's.

    Example:
      >>> import numpy as np, jentropy
      >>> bits = bits_figure(jentropy.analyze({"w": np.ones((4, 4), np.float16)}))
      >>> [text.get_text() for text in bits.axes[0].get_yticklabels()]
      ['FP16']
    """
    rows = list(report.formats.items())
    figure = new_figure(8, 1.3 + 0.9 * max(1, len(rows)))
    axes = figure.subplots()
    for y, (_, row) in enumerate(rows):
        left = 0.0
        for name, field in row.fields.items():
            color = COLORS.get(name, "#888888")
            axes.barh(y, field.allocated_bits, left=left, color=UNUSED, edgecolor="white")
            axes.barh(y, field.entropy_bits, left=left, color=color, edgecolor="white")
            axes.text(
                left + field.allocated_bits / 2,
                y + 0.47,
                f"{name} {field.entropy_bits:.2f} of {field.allocated_bits:g}",
                ha="center",
                va="bottom",
                fontsize=8,
            )
            left += field.allocated_bits
        axes.text(left, y, f"  {row.used_fraction:.0%} used", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    widest = max([row.allocated_bits for _, row in rows], default=1.0)
    axes.set_xlim(0, widest * 1.12)
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xlabel("bits per weight (coloured: entropy, grey: allocated and unused)")
    axes.set_title(f"Where the bits go: {report.source}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def magnitude_figure(reports: Sequence[EntropyReport]) -> Figure:
    """Distribution of log2 |w|, and the same shifted by its mean and scaled by its deviation.

    Trained models fall on one curve.

    Args:
      reports: a line for each.

    Returns:
      A figure of Matplotlib's.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.arange(1, 9, dtype=np.float16)})
      >>> [line.get_label() for line in magnitude_figure([report]).axes[0].lines]
      ['pytree']
    """
    figure = new_figure(8, 3.2)
    plain, scaled = figure.subplots(1, 2)
    for report in reports:
        magnitude: dict[str, Any] = report.magnitude
        counts = np.asarray(magnitude["counts"], np.float64)
        if not counts.sum():
            continue
        edges = np.asarray(magnitude["log2_edges"])
        centers, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
        density = counts / counts.sum() / widths
        label = report.source.rstrip("/").rsplit("/", 1)[-1]
        plain.plot(centers, density, label=label)
        if spread := magnitude["std_log2"]:
            scaled.semilogy((centers - magnitude["mean_log2"]) / spread, density * spread, ".-")
    plain.set_xlabel("log2 |w|")
    plain.set_ylabel("density")
    scaled.set_xlabel("(log2 |w| - mean) / standard deviation")
    if plain.lines:
        plain.legend(fontsize=8)
    for axes in (plain, scaled):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def tensor_figure(report: EntropyReport) -> Figure:
    """Entropy of every tensor in the order of the checkpoint, bits per weight.

    Args:
      report: a dot for each of its tensors.

    Returns:
      A figure of Matplotlib's.

    Example:
      >>> import numpy as np, jentropy
      >>> dots = tensor_figure(jentropy.analyze({"w": np.ones((4, 4), np.float16)}))
      >>> dots.axes[0].lines[0].get_xydata().tolist()
      [[0.0, 0.0]]
    """
    figure = new_figure(8, 2.6)
    axes = figure.subplots()
    names = dict.fromkeys(t.format for t in report.tensors)
    for name in names:
        points = [(i, t.entropy_bits) for i, t in enumerate(report.tensors) if t.format == name]
        axes.plot(*zip(*points, strict=True), ".", markersize=4, label=name)
    axes.set_xlabel("tensor, in the order of the checkpoint")
    axes.set_ylabel("bits per weight")
    axes.set_ylim(bottom=0)
    if names:
        axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
