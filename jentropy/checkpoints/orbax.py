"""What is asked of Orbax itself: pytrees and compressed checkpoints written, and seen again."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jentropy.containers.trees import leaf_name
from jentropy.errors import InputError, UnsupportedError, said

from . import durable
from .faults import named_in, of_system, writing
from .remote import RemotePath
from .staging import Replaces, put_in_place, staged, without_glob

# Orbax takes seconds to import, so only what needs it does.
# Files that it reads for what it says of arrays.
METADATA = re.compile(r"(.*/)?(zarr\.json|\.zarray|_[A-Z_]+|orbax\.checkpoint|commit_success\.txt)")


def _is_others(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


@contextmanager
def _orbax(path: Path) -> Iterator[tuple[Any, Path]]:
    """Orbax, without its warnings about its own doings (through absl), and a path for it."""
    from orbax.checkpoint import v1 as ocp

    logger = logging.getLogger("absl")
    logger.addFilter(_is_others)  # levels are the user's
    try:
        with without_glob(path) as plain:
            yield ocp, plain
    finally:
        logger.removeFilter(_is_others)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that Orbax finds in a checkpoint, by dotted path.

    Raises:
      InputError: whatever keeps Orbax from reading it.
    """
    if isinstance(path, RemotePath):
        path.fetch_below(METADATA)
    with _orbax(path) as (ocp, plain):
        try:
            tree = ocp.metadata(plain).metadata
        except (ValueError, OSError) as error:  # of damaged files it raises no other
            raise InputError(
                f"Orbax cannot read it: {said(error)}", file=named_in(error, path)
            ) from error
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {leaf_name(key): tuple(getattr(leaf, "shape", None) or ()) for key, leaf in leaves}


def save_tree(
    path: Path,
    tree: Any,
    *,
    replaces: Replaces | None = None,
    purpose: str = "decompress",
    beside: Mapping[str, str] | None = None,
) -> None:
    """Writes a pytree of arrays, numbers and texts with Orbax's defaults, whole or not at all.

    Args:
      beside: texts by name, of files that will lie in the folder too.
      replaces: see `staging.refuse_existing`.
      purpose: see `staging.stage_of`.

    Raises:
      UnsupportedError: a pytree that Orbax does not store.
      DestinationError: `path` exists or cannot be written.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    empty = [jax.tree_util.keystr(key) for key, leaf in leaves if getattr(leaf, "size", 1) == 0]
    if not leaves or empty:
        raise UnsupportedError(
            f"Orbax stores no empty {'array' if empty else 'tree'}",
            file=path,
            tensor=empty[0] if empty else None,
            hint="jentropy.load and jentropy.decompress give it back in Python",
        )
    with staged(path, purpose, replaces=replaces) as stage, writing(path):
        try:
            with writing(path), _orbax(stage) as (ocp, plain):
                ocp.save(plain / "out", tree)
        except (ValueError, TypeError) as error:
            raise UnsupportedError(f"Orbax cannot store it: {said(error)}", file=path) from error
        for name, text in (beside or {}).items():
            (stage / "out" / name).write_text(text, encoding="utf-8")
        durable.sync_tree(stage / "out")
        put_in_place(stage / "out", path, replace=replaces is not None)


def save_arrays(folder: Path, tree: Mapping[str, Any], *, custom_metadata: dict[str, Any]) -> Path:
    """Writes a checkpoint of uint8 arrays: no OCDBT, no compression.

    Args:
      folder: where the checkpoint will lie, alone, under a name of this function's choice.

    Returns:
      The checkpoint.
    """
    with _orbax(folder) as (ocp, plain):
        context = ocp.Context()
        context.array.saving.use_ocdbt = False
        context.array.saving.use_compression = False
        try:
            with context:
                ocp.partial.save(plain / "out", tree, custom_metadata=custom_metadata)
                ocp.partial.finalize(plain / "out")
        except OSError:
            raise
        except Exception as error:  # whatever it makes of what the system says
            raise OSError(of_system(error) or f"Orbax: {said(error)}") from error
    return folder / "out"
