"""Figures as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jentropy.entropy import EntropyReport

from . import figures

DPI = 150


def write_png(
    reports: EntropyReport | Sequence[EntropyReport], directory: str | Path
) -> list[Path]:
    """Writes `bits.png`, `tensors.png` (numbered if there are several reports) and `magnitude.png`.

    Args:
      reports: one report, or several to compare.
      directory: made if it is missing.

    Returns:
      The files written.

    Raises:
      UnsupportedError: Matplotlib is not installed.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     [file.name for file in write_png(report, folder)]
      ['magnitude.png', 'bits.png', 'tensors.png']
    """
    many = [reports] if isinstance(reports, EntropyReport) else list(reports)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"magnitude": figures.magnitude_figure(many)}
    for i, report in enumerate(many):
        suffix = f"-{i}" if len(many) > 1 else ""
        drawn[f"bits{suffix}"] = figures.bits_figure(report)
        drawn[f"tensors{suffix}"] = figures.tensor_figure(report)
    written = []
    for name, figure in drawn.items():
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=DPI)
    return written
