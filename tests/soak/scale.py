"""A checkpoint of many bundles: compressed, opened by stock Orbax, verified, decompressed.

Bundles are small, so that there are as many as a checkpoint of terabytes has. Bytes are noise,
which is stored: what is timed is what bundles cost, not their bytes. Descriptors are limited as
they usually are.

    python -m tests.soak.scale FOLDER [--bundles 20000] [--bundle-bytes 65536] [--files 1024]
"""

from __future__ import annotations

import argparse
import filecmp
import resource
import shutil
from pathlib import Path

import numpy as np

import jentropy
from jentropy.checkpoints import writer

from .measuring import told, write_safetensors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundles", type=int, default=20_000)
    parser.add_argument("--bundle-bytes", type=int, default=1 << 16)
    parser.add_argument("--files", type=int, default=1024)
    parser.add_argument("--no-orbax", action="store_true")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (given.files, given.files))
    writer.BUNDLE_BYTES = given.bundle_bytes
    run(given.folder, given.bundles, given.bundle_bytes, orbax=not given.no_orbax)


def run(folder: Path, bundles: int, bundle_bytes: int, *, orbax: bool = True) -> None:
    """Goes through all of it in a folder, which it leaves empty."""
    source, dst, out = folder / "source", folder / "dst", folder / "out"
    rng = np.random.default_rng(0)

    def noise(number: int, size: int):
        yield rng.integers(0, 256, size, np.uint8).data

    tensors = {f"t{i}": ("U8", [bundle_bytes]) for i in range(bundles)}
    write_safetensors(source / "model.safetensors", tensors, noise)
    told("compress", lambda: jentropy.compress_checkpoint(source, dst))
    assert len(list((dst / "state").glob("bundles.*"))) >= bundles
    told("open", lambda: jentropy.open_checkpoint(dst))
    tree = told("load", lambda: jentropy.load(dst))
    told("read all", lambda: sum(int(jentropy.decompress(t)[0]) for t in list(tree.values())))
    if orbax:
        from orbax.checkpoint import v1

        told("stock Orbax", lambda: v1.load(dst))
        told("verify", lambda: jentropy.verify(dst, against=source))
    told("decompress", lambda: jentropy.decompress_checkpoint(dst, out))
    assert filecmp.cmp(source / "model.safetensors", out / "model.safetensors", shallow=False)
    for path in (source, dst, out):
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
