"""What a path holds: what Orbax wrote, or files of tensors."""

from __future__ import annotations

from pathlib import Path

from .orbax_source import OrbaxSource, is_orbax, read_orbax
from .sources import FileSource, read_file_source


def read_source(path: Path, step: int | None = None) -> FileSource | OrbaxSource:
    """What a path holds, read without its arrays.

    Args:
      step: the only step of a manager's root that is wanted; None: all of them.

    Raises:
      InputError: what is there cannot be read; a step of what is no manager's root.
    """
    if step is not None or is_orbax(path):
        return read_orbax(path, step)
    return read_file_source(path)
