"""`open_checkpoint`: the one door to every kind of checkpoint."""

from __future__ import annotations

from pathlib import Path

import jax

from jentropy.containers import trees

from . import orbax
from .checkpoint import Checkpoint
from .compressed import CompressedCheckpoint
from .dialects import DIALECTS
from .dialects.plain import plain_tensor
from .hub import resolve
from .sources import read_config, read_file_source
from .store import is_compressed_checkpoint, is_orbax_checkpoint


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint lazily.

    Args:
      path: a safetensors file, a directory in Hugging Face form (with `config.json` or without), an
        Orbax checkpoint, a compressed checkpoint, or `hf://owner/name[@revision]`.

    Returns:
      A `Checkpoint`: `.names()`, `.tensor(name)`, `.config`.

    Raises:
      InputError: what is there cannot be read, by file and tensor.
    """
    source = resolve(path)
    if source.is_dir() and is_compressed_checkpoint(source):
        return CompressedCheckpoint(source)
    if source.is_dir() and is_orbax_checkpoint(source):
        leaves = jax.tree_util.tree_flatten_with_path(orbax.load_tree(source))[0]
        named = ((trees.leaf_name(key), trees.as_array(leaf)) for key, leaf in leaves)
        return Checkpoint(source, [plain_tensor(name, leaf) for name, leaf in named])
    files = read_file_source(source)
    config = read_config(files.root)
    dialect = next(d for d in DIALECTS.values() if d.claims(config, files.stored))
    return Checkpoint(source, dialect.tensors(config, files.stored), config)
