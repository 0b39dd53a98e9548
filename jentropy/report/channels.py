"""Heat maps of channels: which reach far beyond the others of a layer (extra `report`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from .figures import new_figure
from .speeds import DPI

FARTHEST = 3.0  # that colours tell
LAYER = re.compile(r"layers\.(\d+)\.")


def write_channels(
    largest: Mapping[str, Mapping[str, Float[np.ndarray, " channels"]]], file: str | Path
) -> None:
    """Draws a row of panels for each title, a panel for each kind of matrix, a line for each layer.

    Colours say how far a channel is from the middle one of its layer, in powers of two.

    Args:
      largest: title -> names of matrices (`layers.0.mlp.up_proj`) -> the largest |x| of every
        channel of their inputs, or |w| of their columns.
      file: a path whose suffix is the kind of picture.

    Raises:
      UnsupportedError: Matplotlib is not installed.

    Example:
      >>> import tempfile
      >>> inputs = {f"layers.{n}.mlp.up_proj": np.ones(8) for n in range(2)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_channels({"inputs": inputs}, f"{folder}/channels.png")
      ...     Path(folder, "channels.png").stat().st_size > 0
      True
    """
    panels = {title: _by_kind(rows) for title, rows in largest.items()}
    kinds = list(dict.fromkeys(kind for found in panels.values() for kind in found))
    figure = new_figure(3.2 * len(kinds), 0.6 + 1.9 * len(panels))
    grid = figure.subplots(len(panels), len(kinds), squeeze=False)
    for (title, found), line in zip(panels.items(), grid, strict=True):
        for kind, axes in zip(kinds, line, strict=True):
            drawn = axes.imshow(
                found[kind],
                aspect="auto",
                interpolation="nearest",
                vmin=-FARTHEST,
                vmax=FARTHEST,
                cmap="RdBu_r",
            )
            axes.set_title(f"{title}: {kind}", fontsize=8)
            axes.tick_params(labelsize=7)
        figure.colorbar(drawn, ax=list(line), label="log2 of the middle")
    for axes in grid[:, 0]:
        axes.set_ylabel("layer", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("channel", fontsize=8)
    figure.savefig(file, dpi=DPI)


def _by_kind(
    largest: Mapping[str, Float[np.ndarray, " channels"]],
) -> dict[str, Float[np.ndarray, "layers channels"]]:
    """Logarithms over the middle one, by what of names is no number of a layer."""
    rows: dict[str, dict[int, np.ndarray]] = {}
    for name, channels in largest.items():
        layer = LAYER.search(name)
        kind = LAYER.sub("", name).removeprefix("model.").removesuffix(".weight")
        rows.setdefault(kind, {})[int(layer[1]) if layer else 0] = np.asarray(channels)
    stacks = {kind: np.stack([of[n] for n in sorted(of)]) for kind, of in rows.items()}
    logs = {kind: np.log2(np.maximum(stack, 1e-30)) for kind, stack in stacks.items()}
    return {kind: log - np.median(log, axis=1, keepdims=True) for kind, log in logs.items()}
