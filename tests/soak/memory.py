"""Anonymous memory of every command on a large checkpoint, whatever the size of its tensors.

python -m tests.soak.memory FOLDER [--gib 3] [--largest-gib 2]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np

import jentropy

from .measuring import told, write_safetensors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=3)
    parser.add_argument("--largest-gib", type=float, default=2)
    given = parser.parse_args()
    run(given.folder, int(given.gib * 2**30), int(given.largest_gib * 2**30))


def run(folder: Path, size: int, largest: int) -> None:
    """Goes through all commands in a folder, which it leaves empty."""
    source, dst, out = folder / "source", folder / "dst", folder / "out"
    rng = np.random.default_rng(0)
    block = (rng.standard_normal(1 << 23) * 0.02).astype(ml_dtypes.bfloat16)

    def weights(number: int, bytes_: int):
        for at in range(0, bytes_, block.nbytes):
            part = np.roll(block, number * 977 + at % 1013)
            yield part.view(np.uint8)[: bytes_ - at].data

    rows, others = largest // 2 // 4096, max(1, (size - largest) >> 27)
    tensors = {"embed": ("BF16", [rows, 4096])}
    tensors |= {f"w{n}": ("BF16", [1 << 14, 1 << 12]) for n in range(others)}
    write_safetensors(source / "model.safetensors", tensors, weights)
    told("compress", lambda: jentropy.compress_checkpoint(source, dst))
    told("inspect", lambda: jentropy.inspect(dst))
    told("verify", lambda: jentropy.verify(dst, against=source))
    told("analyze", lambda: jentropy.analyze(dst))
    told("of source", lambda: jentropy.analyze(source))
    told("decompress", lambda: jentropy.decompress_checkpoint(dst, out))
    for path in (source, dst, out):
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
