"""Suite `load`: from disk to arrays, beside stock Orbax and safetensors.

"First" is the first matrix alone: how soon a first layer can run. Files were written just before
and lie in the system's cache, so that what is timed is the work, not the disk; `megabytes` says
what a disk or a network would have to move.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jentropy

from .dense import bytes_of, tensors
from .measure import Result, median_seconds

REPEATS = 3
# A way to read: its name, where the files lie, and calls that read the first matrix and all.
Reading = tuple[str, Path, Callable[[], Any], Callable[[], Any]]


def run(source: str | Path) -> list[Result]:
    """Seconds to the first matrix and to all tensors, and bytes on disk.

    Args:
      source: what `jentropy.open_checkpoint` takes.

    Returns:
      A row for each way to read.
    """
    tree = tensors(source)
    first = next(name for name, values in tree.items() if values.ndim > 1)
    with tempfile.TemporaryDirectory() as folder:
        return [
            Result(
                name=name,
                figures={
                    "first_seconds": median_seconds(part, REPEATS),
                    "all_seconds": median_seconds(whole, REPEATS),
                    "megabytes": bytes_of(path) / 1e6,
                },
            )
            for readings in (_jentropy, _orbax, _safetensors)
            for name, path, part, whole in readings(tree, first, Path(folder))
        ]


def _jentropy(tree: Mapping[str, np.ndarray], first: str, folder: Path) -> Iterator[Reading]:
    path, rows = folder / "jentropy", min(tree[first].shape[0], 128)
    jentropy.save(path, tree)
    yield (
        "jentropy",
        path,
        lambda: jentropy.decompress(jentropy.load(path)[first]),
        lambda: jentropy.decompress(jentropy.load(path)),
    )
    yield (
        f"jentropy, {rows} rows",
        path,
        lambda: jentropy.decompress_slice(jentropy.load(path)[first], np.s_[:rows]),
        lambda: jentropy.load(path),
    )


def _orbax(tree: Mapping[str, np.ndarray], first: str, folder: Path) -> Iterator[Reading]:
    from orbax.checkpoint import v1 as ocp

    path = folder / "orbax"
    ocp.save(path, tree)
    whole = {key: np.empty(values.shape, values.dtype) for key, values in tree.items()}
    part = {key: target if key == first else ocp.PLACEHOLDER for key, target in whole.items()}
    yield "Orbax", path, lambda: ocp.load(path, part), lambda: ocp.load(path, whole)


def _safetensors(tree: Mapping[str, np.ndarray], first: str, folder: Path) -> Iterator[Reading]:
    try:
        from safetensors import safe_open
        from safetensors.numpy import load_file, save_file
    except ImportError:
        return
    path = folder / "model.safetensors"
    save_file(tree, str(path))

    def part() -> np.ndarray:
        with safe_open(str(path), framework="numpy") as opened:
            return opened.get_tensor(first)

    yield "safetensors", path, part, lambda: load_file(str(path))
