"""Checkpoints that stock Orbax wrote, as pytrees of NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jentropy.errors import InputError


def load_tree(path: Path) -> Any:
    """The pytree of an Orbax checkpoint; arrays come as NumPy, whatever devices wrote them.

    Raises:
      InputError: whatever keeps Orbax from reading it.
    """
    from orbax.checkpoint import v1 as ocp  # seconds to import

    try:
        described = ocp.metadata(path.resolve()).metadata
        target = jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf,
            described,
        )
        return ocp.load(path.resolve(), target)
    except Exception as error:
        first = (str(error) or type(error).__name__).split("\n", 1)[0]
        raise InputError(f"Orbax cannot read it: {first:.200}", file=path) from error


def save_tree(path: Path, tree: Any) -> None:
    """Writes a pytree of NumPy arrays with Orbax's defaults."""
    from orbax.checkpoint import v1 as ocp

    ocp.save(path.resolve(), tree)
