"""`open_checkpoint`: the one door to every kind of checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jentropy.errors import InputError

from . import reading
from .checkpoint import Checkpoint
from .compressed import CompressedCheckpoint
from .compressing import read_source
from .contents import StoredArray
from .hub import resolve
from .orbax_source import OrbaxSource
from .store import is_compressed_checkpoint


def open_checkpoint(path: str | Path, *, step: int | None = None) -> Checkpoint:
    """Opens a checkpoint lazily.

    Args:
      path: a safetensors or GGUF file, a directory in Hugging Face form (with `config.json` or
        without), what Orbax wrote (the root of a `CheckpointManager`, a step, an item), a
        compressed checkpoint, or `hf://owner/name[@revision]`.
      step: the only step of a manager's root that is wanted; None: all of them.

    Returns:
      A `Checkpoint`: `.names()`, `.tensor(name)`, `.config`.

    Raises:
      InputError: what is there cannot be read, by file and tensor.
    """
    source = resolve(path)
    if source.is_dir() and is_compressed_checkpoint(source):
        if step is not None:
            raise InputError(
                f"step {step}", file=source, expected="the source", found="a compressed checkpoint"
            )
        return CompressedCheckpoint(source)
    opened = read_source(source, step)
    contents = opened.contents()
    found = reading.read(contents)
    notes = (*opened.notes, *found.notes) if isinstance(opened, OrbaxSource) else found.notes
    return Checkpoint(source, found.tensors, contents.config, notes)


def stored_leaf(name: str, values: np.ndarray, file: Path) -> StoredArray:
    """An array in memory, as a dialect sees one."""
    return StoredArray(
        name=name,
        shape=tuple(values.shape),
        dtype=values.dtype,
        file=file,
        read=lambda: values,
    )
