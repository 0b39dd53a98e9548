"""Suite `load`: from disk to arrays, beside stock Orbax and safetensors.

"First" is the first matrix alone: how soon a first layer can run. Files were written just before
and lie in the system's cache, so that what is timed is the work, not the disk; `megabytes` says
what a disk or a network would have to move.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import jentropy
from jentropy import formats

from .measure import Result, median_seconds

REPEATS = 3


def run(source: str | Path) -> list[Result]:
    """Seconds to the first matrix and to all tensors, and bytes on disk."""
    from orbax.checkpoint import v1 as ocp

    checkpoint = jentropy.open_checkpoint(source)
    tree = {
        tensor.name: np.ascontiguousarray(tensor.values(codes))
        for tensor, codes in checkpoint.read_all()
        if tensor.format != formats.RAW and tensor.dtype is not None
    }
    first = next(name for name, values in tree.items() if values.ndim > 1)
    results = []

    def row(name: str, path: Path, part: Callable[[], Any], whole: Callable[[], Any]) -> None:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        results.append(
            Result(
                name=name,
                figures={
                    "first_seconds": median_seconds(part, REPEATS),
                    "all_seconds": median_seconds(whole, REPEATS),
                    "megabytes": sum(p.stat().st_size for p in files) / 1e6,
                },
            )
        )

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "jentropy"), Path(folder, "orbax")
        jentropy.save(ours, tree)
        ocp.save(theirs, tree)
        row(
            "jentropy",
            ours,
            lambda: jentropy.decompress(jentropy.load(ours)[first]),
            lambda: jentropy.decompress(jentropy.load(ours)),
        )
        rows = min(tree[first].shape[0], 128)
        row(
            f"jentropy, {rows} rows",
            ours,
            lambda: jentropy.decompress_slice(jentropy.load(ours)[first], np.s_[:rows]),
            lambda: jentropy.load(ours),
        )
        targets = {key: np.empty(v.shape, v.dtype) for key, v in tree.items()}
        partial = {key: v if key == first else ocp.PLACEHOLDER for key, v in targets.items()}
        row(
            "Orbax",
            theirs,
            lambda: ocp.load(theirs, partial),
            lambda: ocp.load(theirs, targets),
        )
        _safetensors(tree, first, Path(folder), row)
    return results


def _safetensors(
    tree: dict[str, np.ndarray], first: str, folder: Path, row: Callable[..., None]
) -> None:
    try:
        from safetensors import safe_open
        from safetensors.numpy import load_file, save_file
    except ImportError:
        return
    file = folder / "model.safetensors"
    save_file(tree, str(file))

    def part() -> np.ndarray:
        with safe_open(str(file), framework="numpy") as opened:
            return opened.get_tensor(first)

    row("safetensors", file, part, lambda: load_file(str(file)))
