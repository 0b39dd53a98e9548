"""`open_checkpoint`: the one door to every kind of checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from jentropy.containers import trees

from . import orbax, reading
from .archived import inside_archive
from .checkpoint import Checkpoint
from .compressed import CompressedCheckpoint
from .contents import StoredArray, read_contents
from .hub import resolve
from .sources import read_file_source
from .store import is_compressed_checkpoint, is_orbax_checkpoint


def open_checkpoint(path: str | Path, *, strict: bool = False) -> Checkpoint:
    """Opens a checkpoint lazily.

    Args:
      path: a safetensors or GGUF file, a directory of such files (in Hugging Face form, with
        `config.json` or without, or a pipeline of several), an Orbax checkpoint, a compressed
        checkpoint, a file or folder in one (`DST/unet`), or `hf://owner/name[@revision]`.
      strict: whether a quantised weight that contradicts what its config declares, or that lacks a
        part, is an error; otherwise it is RAW, as one of an unknown method is in any case, and
        `.notes` and its `.note` say why.

    Returns:
      A `Checkpoint`: `.names()`, `.tensor(name)`, `.config`, `.notes`.

    Raises:
      InputError: what is there cannot be read, by file and tensor.
    """
    if inside := inside_archive(Path(path)):
        return CompressedCheckpoint(*inside, strict=strict)
    source = resolve(path)
    if source.is_dir() and is_compressed_checkpoint(source):
        return CompressedCheckpoint(source, strict=strict)
    if source.is_dir() and is_orbax_checkpoint(source):
        contents = read_contents(source, _leaves(source), lambda name: None)
    else:
        found = read_file_source(source).view(strict=strict)
        return Checkpoint(source, found.tensors, found.config, found.notes)
    leaves = reading.read(contents, strict=strict)
    return Checkpoint(source, leaves.tensors, contents.config, leaves.notes)


def _leaves(source: Path) -> Iterator[StoredArray]:
    for key, leaf in jax.tree_util.tree_flatten_with_path(orbax.load_tree(source))[0]:
        yield stored_leaf(trees.leaf_name(key), trees.as_array(leaf), source)


def stored_leaf(name: str, values: np.ndarray, file: Path) -> StoredArray:
    """An array in memory, as a dialect sees one."""
    return StoredArray(
        name=name,
        shape=tuple(values.shape),
        dtype=values.dtype,
        file=file,
        read=lambda: values,
    )
