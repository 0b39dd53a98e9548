"""Dense tensors of a checkpoint, as suites time them, and what files take on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import jentropy
from jentropy import formats


def tensors(source: str | Path) -> dict[str, np.ndarray]:
    """Tensors of a checkpoint by name, but for RAW ones and those without a dtype.

    Args:
      source: what `jentropy.open_checkpoint` takes.

    Returns:
      Contiguous arrays in memory, in the order of the files.
    """
    checkpoint = jentropy.open_checkpoint(source)
    return {
        tensor.name: np.ascontiguousarray(tensor.values(codes))
        for tensor, codes in checkpoint.read_all()
        if tensor.format != formats.RAW and tensor.dtype is not None
    }


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
