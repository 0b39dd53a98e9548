"""What is asked of Orbax itself: pytrees and compressed checkpoints written, and seen again."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jentropy import jax_internals
from jentropy.containers.trees import leaf_name
from jentropy.errors import InputError, UnsupportedError, said

from . import durable
from .faults import named_in, of_system, writing
from .remote import RemotePath
from .smaller_chunks import WHOLE
from .staging import OUT, without_glob

# Orbax takes seconds to import, so only what needs it does.
# Files that it reads for what it says of arrays.
METADATA = re.compile(r"(.*/)?(zarr\.json|\.zarray|_[A-Z_]+|orbax\.checkpoint|commit_success\.txt)")


def _is_others(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


@contextmanager
def _orbax(path: Path, *, as_files: bool = False) -> Iterator[tuple[Any, Path]]:
    """Orbax, without its warnings about its own doings (through absl), and a path for it.

    Args:
      as_files: whether arrays are saved as files that have their bytes as they are.
    """
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    if as_files:
        context.array.saving.use_ocdbt = False
        context.array.saving.use_compression = False
    else:
        context.array.saving.storage_options.chunk_byte_size = WHOLE
        context.memory.deepcopy_host_arrays = False
    logger = logging.getLogger("absl")
    logger.addFilter(_is_others)  # levels are the user's
    try:
        with without_glob(path) as plain, context:
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


def refuse_empty(path: Path, sizes: Mapping[str, int]) -> None:
    """Raises UnsupportedError if Orbax stores no pytree of leaves of such sizes, by their names."""
    empty = next((name for name, size in sizes.items() if size == 0), None)
    if not sizes or empty is not None:
        raise UnsupportedError(
            f"Orbax stores no empty {'tree' if empty is None else 'array'}",
            file=path,
            tensor=empty,
            hint="jentropy.load and jentropy.decompress give it back in Python",
        )


def write_tree(stage: Path, path: Path, tree: Any, beside: Mapping[str, str]) -> Path:
    """Writes a pytree into a folder of `staged`, in chunks that may be written at once.

    Args:
      path: of what it will be, for messages.
      beside: texts of files beside it, by name.

    Returns:
      What was written.

    Raises:
      UnsupportedError: a pytree that Orbax does not store.
    """
    _clean(stage)  # of what was killed
    try:
        with writing(path), _orbax(stage) as (ocp, plain):
            ocp.save(plain / OUT, tree)
    except (ValueError, TypeError) as error:
        _clean(stage)
        raise UnsupportedError(f"Orbax cannot store it: {said(error)}", file=path) from error
    for name, text in beside.items():
        (stage / OUT / name).write_text(text, encoding="utf-8")
    durable.sync_tree(stage / OUT)
    return stage / OUT


def _clean(stage: Path) -> None:
    for left in stage.glob(f"{OUT}*"):
        shutil.rmtree(left)


def save_arrays(folder: Path, tree: Mapping[str, Any], *, custom_metadata: dict[str, Any]) -> Path:
    """Writes a checkpoint of uint8 arrays: no OCDBT, no compression.

    Args:
      folder: where the checkpoint will lie, alone, under a name of this function's choice.

    Returns:
      The checkpoint.
    """
    if jax_internals.coordination_client() is None:
        _save_arrays(folder, tree, custom_metadata)
    else:
        _in_a_child(folder, tree, custom_metadata)
    return folder / OUT


def _save_arrays(folder: Path, tree: Mapping[str, Any], custom_metadata: dict[str, Any]) -> None:
    with _orbax(folder, as_files=True) as (ocp, plain):
        try:
            ocp.partial.save(plain / OUT, tree, custom_metadata=custom_metadata)
            ocp.partial.finalize(plain / OUT)
        except OSError:
            raise
        except Exception as error:  # whatever it makes of what the system says
            raise OSError(of_system(error) or f"Orbax: {said(error)}") from error


def _in_a_child(folder: Path, tree: Mapping[str, Any], custom_metadata: dict[str, Any]) -> None:
    """The same in a process of its own: among those of `jax.distributed` Orbax waits for all."""
    file = folder / "arrays.npz"
    np.savez(file, **tree, custom_metadata=np.array(json.dumps(custom_metadata)))
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen(
        [sys.executable, "-m", __name__, os.fspath(file)],
        env=environment,
        stdin=subprocess.PIPE,  # which ends when this process does
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stderr is not None
        errors = child.stderr.read()
    file.unlink()
    if child.returncode:
        told = errors.splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise OSError(f"Orbax: {told[0]:.200}")


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: nobody wants what it writes."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with np.load(sys.argv[1]) as given:
        arrays = dict(given)
    told = json.loads(str(arrays.pop("custom_metadata")))
    _save_arrays(Path(sys.argv[1]).parent, arrays, told)
