"""Anonymous memory of every command on a large checkpoint, whatever the size of its tensors.

python -m tests.soak.memory FOLDER [--gib 3] [--largest-gib 2] [--kind orbax]

Of `orbax` the largest tensor is one chunk, of `gguf` it is in blocks of Q8_0; `pytree` is saved
from Python, and becomes a checkpoint of Orbax.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import jentropy

from .measuring import told, write_safetensors

COLUMNS = 1 << 12
Tensors = dict[str, tuple[str, list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=3)
    parser.add_argument("--largest-gib", type=float, default=2)
    parser.add_argument("--kind", choices=[*SOURCES, "pytree"], default="safetensors")
    given = parser.parse_args()
    run(given.folder, int(given.gib * 2**30), int(given.largest_gib * 2**30), given.kind)


def parts(number: int, size: int) -> Iterator[memoryview]:
    """The bytes of a tensor."""
    rng = np.random.default_rng(0)
    block = (rng.standard_normal(1 << 23) * 0.02).astype(ml_dtypes.bfloat16)
    for at in range(0, size, block.nbytes):
        part = np.roll(block, number * 977 + at % 1013)
        yield part.view(np.uint8)[: size - at].data


def as_files(folder: Path, tensors: Tensors) -> None:
    write_safetensors(folder / "model.safetensors", tensors, parts)


def mapped(folder: Path, tensors: Tensors) -> dict[str, Any]:
    """The tensors, mapped from a file that is not there any more."""
    as_files(folder, tensors)
    checkpoint = jentropy.open_checkpoint(folder)
    arrays = {name: checkpoint.tensor(name).values() for name in tensors}
    (folder / "model.safetensors").unlink()
    return arrays


def by_orbax(folder: Path, tensors: Tensors) -> None:
    from orbax.checkpoint import v1 as ocp

    arrays = mapped(folder.with_name("raw"), tensors)
    ocp.save(folder, arrays)


def as_gguf(folder: Path, tensors: Tensors) -> None:
    import gguf

    folder.mkdir()
    out = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for name, values in mapped(folder.with_name("raw"), tensors).items():
        blocks = values.view(np.uint8).reshape(-1, COLUMNS // 32 * 34)
        out.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


SOURCES = {"safetensors": as_files, "orbax": by_orbax, "gguf": as_gguf}


def run(folder: Path, size: int, largest: int, kind: str = "safetensors") -> None:
    """Goes through all commands in a folder, which it leaves empty."""
    source, dst, out = folder / "source", folder / "dst", folder / "out"
    step = 34 << 7 if kind == "gguf" else 2 * COLUMNS  # bytes of a row
    rows, others = largest // step, max(1, (size - largest) >> 27)
    of_a_row = step // 2
    tensors = {"embed": ("BF16", [rows, of_a_row])}
    tensors |= {f"w{n}": ("BF16", [(1 << 27) // step, of_a_row]) for n in range(others)}
    if kind == "pytree":
        tree = mapped(folder / "raw", tensors)
        told("save", lambda: jentropy.save(dst, tree))
        tree.clear()
    else:
        writing = multiprocessing.get_context("spawn").Process(
            target=SOURCES[kind], args=(source, tensors)
        )
        writing.start()
        writing.join()
        assert writing.exitcode == 0
        told("compress", lambda: jentropy.compress_checkpoint(source, dst))
    told("inspect", lambda: jentropy.inspect(dst))
    if kind != "pytree":
        told("verify", lambda: jentropy.verify(dst, against=source))
        told("of source", lambda: jentropy.analyze(source))
    told("analyze", lambda: jentropy.analyze(dst))
    told("decompress", lambda: jentropy.decompress_checkpoint(dst, out))
    if kind == "pytree":
        told("verify", lambda: jentropy.verify(dst, against=out))
    for path in (source, dst, out, folder / "raw"):
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
