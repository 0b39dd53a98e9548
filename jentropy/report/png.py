"""Figures as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jentropy.entropy import EntropyReport
from jentropy.errors import DestinationError

from . import figures
from .labels import listed

DPI = 150


def write_png(
    reports: EntropyReport | Sequence[EntropyReport], directory: str | Path
) -> list[Path]:
    """Writes `bits.png`, `magnitude.png`, `contexts.png`, `layers.png` (numbered if many).

    Args:
      reports: one report, or several to compare.
      directory: made if it is missing.

    Returns:
      The files written: without contexts that were not measured, and layers that are not told of.

    Raises:
      UnsupportedError: Matplotlib is not installed.
      DestinationError: a file cannot be written.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> report = jentropy.analyze({"layers.0.w": np.ones((4, 4), np.float16)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     [file.name for file in write_png(report, folder)]
      ['bits.png', 'magnitude.png', 'layers.png']
    """
    many = listed(reports)
    drawn = {
        "bits": figures.bits_figure(many),
        "magnitude": figures.magnitude_figure(many),
        "contexts": figures.contexts_figure(many),
    }
    for i, report in enumerate(many):
        drawn[f"layers-{i}" if len(many) > 1 else "layers"] = figures.layers_figure(report)
    folder, written = Path(directory), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            if figure is not None:
                written.append(folder / f"{name}.png")
                figure.savefig(written[-1], dpi=DPI)
    except OSError as error:
        raise DestinationError(f"cannot write: {error.strerror}", file=folder) from error
    return written
