"""Speed of coders against the size that they leave, as a picture (Matplotlib, extra `report`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .figures import new_figure

DPI = 110
OWN, OTHER, LIMIT = "#c44e52", "#4c72b0", "#999999"
SPEEDS = {"decode_mb_per_s": "decode", "encode_mb_per_s": "encode"}
SIZE = "bits_per_weight"


def write_speeds(figures: Mapping[str, Mapping[str, float]], file: str | Path) -> None:
    """Draws decoding and encoding speed against bits per weight; up and to the left is better.

    Args:
      figures: of each coder `bits_per_weight`, `decode_mb_per_s` and `encode_mb_per_s`; entropies,
        which have no speed, become lines.
      file: a path whose suffix is the kind of picture.

    Raises:
      UnsupportedError: Matplotlib is not installed.

    Example:
      >>> import tempfile
      >>> speeds = {"decode_mb_per_s": 900.0, "encode_mb_per_s": 300.0}
      >>> rows = {name: {"bits_per_weight": n, **speeds} for name, n in (("a", 11), ("b", 12))}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_speeds(rows, f"{folder}/speeds.png")
      ...     Path(folder, "speeds.png").stat().st_size > 0
      True
    """
    figure = new_figure(10, 4.2)
    coders = {name: row for name, row in figures.items() if set(SPEEDS) <= set(row)}
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), SPEEDS.items(), strict=True):
        for name, row in coders.items():
            color = OWN if name.startswith("jentropy") else OTHER
            axes.plot(row[SIZE], row[key], "o", color=color)
            axes.annotate(
                name,
                (row[SIZE], row[key]),
                xytext=(5, 3),
                textcoords="offset points",
                fontsize=7,
            )
        for name, row in figures.items():
            if "entropy" in name:
                axes.axvline(row[SIZE], color=LIMIT, linewidth=0.8, linestyle=":")
        sizes = [row[SIZE] for row in coders.values()]
        axes.set_xlim(min(sizes) - 0.1, max(sizes) + 0.35 * (max(sizes) - min(sizes)))
        axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("bits per weight")
        axes.grid(visible=True, which="both", color="#eeeeee")
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel("MB of weights a second")
    figure.savefig(file, dpi=DPI)
