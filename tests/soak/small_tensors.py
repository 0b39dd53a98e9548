"""CPU of every command for each of many small tensors.

python -m tests.soak.small_tensors FOLDER [--tensors 20000] [--numbers 64]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np

import jentropy

from .measuring import cpu_seconds, told, write_safetensors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tensors", type=int, default=20_000)
    parser.add_argument("--numbers", type=int, default=64)
    given = parser.parse_args()
    run(given.folder, given.tensors, given.numbers)


def run(folder: Path, count: int, numbers: int) -> None:
    """Goes through all commands in a folder, which it leaves empty."""
    source, dst, out = folder / "source", folder / "dst", folder / "out"
    rng = np.random.default_rng(0)

    def weights(number: int, size: int):
        yield (rng.standard_normal(size // 2) * 0.02).astype(ml_dtypes.bfloat16).tobytes()

    names = (f"layers.{n // 10}.experts.{n % 10}.weight" for n in range(count))
    tensors = {name: ("BF16", [numbers]) for name in names}
    write_safetensors(source / "model.safetensors", tensors, weights)
    first = source.parent / "first"
    write_safetensors(first / "model.safetensors", dict(list(tensors.items())[:50]), weights)
    jentropy.compress_checkpoint(first, dst)  # compiles what there is to compile
    jentropy.verify(dst)
    shutil.rmtree(dst)
    for name, step in {
        "compress": lambda: jentropy.compress_checkpoint(source, dst),
        "inspect": lambda: jentropy.inspect(dst),
        "open": lambda: jentropy.open_checkpoint(dst),
        "load": lambda: jentropy.load(dst),
        "verify": lambda: jentropy.verify(dst),
        "decompress": lambda: jentropy.decompress_checkpoint(dst, out),
    }.items():
        before = cpu_seconds()
        told(name, step)
        print(f"{'':12} {(cpu_seconds() - before) / count * 1e6:8.1f} us a tensor")
    for path in (source, first, dst, out):
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
