"""Coded bits against what is lost, as a picture (Matplotlib, extra `report`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .figures import new_figure
from .speeds import DPI, LIMIT

SHOWN_BITS = 9  # of a weight; what takes more loses next to nothing
AT = " at "  # between a recipe's name and the bits that were asked for
# Bits and distortion by their figures, the title, and the least over 4^-R, if that is known.
PANELS = (
    ("gaussian_bits", "gaussian_relmse", "N(0, 1): squared error", 1.0),
    ("laplace_bits", "laplace_relmse", "Laplace: squared error", float(np.e / np.pi)),
    ("model_bits", "kl", "model: KL, nats a token", None),
    ("model_bits", "nll_added", "model: NLL added, nats a token", None),
)


def write_rate_distortion(figures: Mapping[str, Mapping[str, float]], file: str | Path) -> None:
    """Draws a line for each recipe; down and to the left is better.

    Args:
      figures: of each recipe, or recipe at so many bits (`NAME at BITS bits`), what the suite gave.
      file: a path whose suffix is the kind of picture.

    Raises:
      UnsupportedError: Matplotlib is not installed.

    Example:
      >>> import tempfile
      >>> rows = {"a": {"model_bits": 3, "kl": 0.1}, "a at 2 bits": {"model_bits": 2, "kl": 0.3}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_rate_distortion(rows, f"{folder}/rates.png")
      ...     Path(folder, "rates.png").stat().st_size > 0
      True
    """
    figure = new_figure(14, 11)
    import matplotlib as mpl

    recipes: dict[str, list[Mapping[str, float]]] = {}
    for name, row in figures.items():
        recipes.setdefault(name.partition(AT)[0], []).append(row)
    colors = mpl.colormaps["turbo"](np.linspace(0.03, 0.97, max(2, len(recipes))))
    for axes, (bits, lost, title, least) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for number, (name, rows) in enumerate(recipes.items()):
            points = sorted(
                (row[bits], row[lost])
                for row in rows
                if row.get(lost, 0) > 0 and row[bits] < SHOWN_BITS
            )
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    marker="osD^v<>"[number % 7],
                    color=colors[number],
                    linewidth=0.8,
                    markersize=4,
                    label=name,
                )
        if least is not None:
            line = np.linspace(1, SHOWN_BITS, 50)
            axes.plot(line, least * 4.0**-line, color=LIMIT, linestyle=":", label="least: D(R)")
        axes.set_xlim(0.8, SHOWN_BITS)
        axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("coded bits a weight")
        axes.grid(visible=True, which="both", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    keys: dict[str, object] = {}
    for axes in figure.axes:
        keys |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        keys.values(), keys.keys(), loc="outside right", fontsize=6, frameon=False, ncols=2
    )
    figure.savefig(file, dpi=DPI)
