"""Commands killed (SIGKILL) at random times, until they end: the same bytes, DST absent or whole.

The next run takes up what the killed one left. After every kill the destination is not there, or is
compared as a whole.

    python -m tests.soak.kills FOLDER [--command compress] [--kills 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

import jentropy
from jentropy.checkpoints import array_store, writer

from .measuring import write_safetensors

TOLD = ("_CHECKPOINT_METADATA", "commit_success.txt")  # Orbax writes times and paths into them


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--command", choices=COMMANDS, default="compress")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kills, ended, survived = trial(given.folder, given.command, given.kills, given.seed)
    print(f"{given.command}: {kills} kills, {ended} ended alike, most in a row {survived}")


def files(folder: Path) -> Path:
    """A source of files: tensors of several codecs and chunks, a config, a blob."""
    source = folder / "source"
    rng = np.random.default_rng(0)
    shapes = {"a": [700, 1500], "b": [40, 300], "c": [1 << 20], "d": [3000, 500]}
    kinds = {"a": "BF16", "b": "BF16", "c": "U8", "d": "BF16"}

    def fill(number: int, size: int):
        noise = rng.standard_normal(size // 2).astype(ml_dtypes.bfloat16)
        yield (rng.integers(0, 256, size, np.uint8) if number == 2 else noise).tobytes()

    for part in range(2):
        tensors = {f"{n}{part}": (kinds[n], shape) for n, shape in shapes.items()}
        write_safetensors(source / f"model-{part}.safetensors", tensors, fill)
    (source / "config.json").write_text("{}")
    (source / "tokenizer.bin").write_bytes(rng.integers(0, 9, 1 << 20, np.uint8).tobytes())
    return source


def noise(folder: Path) -> Path:
    """A source whose tensors are stored as they are: nothing of JAX runs."""
    source = folder / "source"
    rng = np.random.default_rng(0)
    tensors = {f"t{n}": ("U8", [10_000]) for n in range(60)}
    write_safetensors(source / "model.safetensors", tensors, lambda _, size: [rng.bytes(size)])
    (source / "config.json").write_text("{}")
    return source


def steps(folder: Path) -> Path:
    """A source that Orbax writes."""
    from orbax.checkpoint import v1

    rng = np.random.default_rng(0)
    tree = {f"w{n}": rng.standard_normal((400, 1000)).astype(ml_dtypes.bfloat16) for n in range(5)}
    v1.save(folder / "source", tree)
    return folder / "source"


def alike(ours: Path, wanted: Path) -> bool:
    """Whether two folders have the same files, but for what Orbax tells of times."""
    names = {p.relative_to(wanted).as_posix() for p in wanted.rglob("*") if p.is_file()}
    here = {p.relative_to(ours).as_posix() for p in ours.rglob("*") if p.is_file()}
    return names == here and all(
        name in TOLD or (ours / name).read_bytes() == (wanted / name).read_bytes() for name in names
    )


def same_arrays(ours: Path, wanted: Path) -> bool:
    """Whether Orbax finds the same arrays: OCDBT names its files at random."""
    from orbax.checkpoint import v1

    a, b = v1.load(ours), v1.load(wanted)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def compress(source: Path, dst: Path) -> None:
    jentropy.compress_checkpoint(source, dst)


def decompress(packed: Path, dst: Path) -> None:
    jentropy.decompress_checkpoint(packed, dst)


Command = tuple[Callable[[Path], Path], Callable[[Path, Path], None], Callable[[Path, Path], bool]]


def packed(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """What makes a compressed checkpoint of a source."""

    def run(folder: Path) -> Path:
        _in_child(lambda: compress(make(folder), folder / "packed"))
        return folder / "packed"

    return run


COMMANDS: dict[str, Command] = {
    "compress-noise": (noise, compress, alike),
    "decompress-noise": (packed(noise), decompress, alike),
    "compress": (files, compress, alike),
    "decompress": (packed(files), decompress, alike),
    "compress-orbax": (steps, compress, alike),
    "decompress-orbax": (packed(steps), decompress, same_arrays),
}


def _start(run: Callable[[], object]) -> int:
    """Runs something in a child, which has all modules loaded; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        writer.BUNDLE_BYTES = 30_000
        array_store.TRANSACTION_BYTES = 1 << 20
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _in_child(run: Callable[[], object]) -> None:
    code = os.waitpid(_start(run), 0)[1]
    assert code == 0, code


def trial(folder: Path, command: str, kills: int, seed: int) -> tuple[int, int, int]:
    """Kills a command so many times; how many kills, runs that ended alike, most kills of one."""
    from orbax.checkpoint import v1  # noqa: F401  loaded before children are made

    make, run, same = COMMANDS[command]
    dice = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _in_child(lambda: make(folder))
    source = folder / ("packed" if command.startswith("decompress") else "source")
    wanted, dst = folder / "wanted", folder / "dst"
    began = time.monotonic()
    _in_child(lambda: run(source, wanted))
    whole = time.monotonic() - began
    done = ended = row = most = 0
    while done < kills:
        child = _start(lambda: run(source, dst))
        limit = time.monotonic() + dice.uniform(0.1, 1.1) * whole
        status = None
        while status is None and time.monotonic() < limit:
            found, code = os.waitpid(child, os.WNOHANG)
            status = code if found else None
            time.sleep(0.001)
        if status is None:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                done, row = done + 1, row + 1
        if dst.exists():
            assert _whole(same, dst, wanted), f"{dst} is not what it should be"
            ended, most, row = ended + 1, max(most, row), 0
            shutil.rmtree(dst)
        elif not os.WIFSIGNALED(status):
            assert status == 0, f"{command} failed: {status}"
    _in_child(lambda: run(source, dst))
    assert _whole(same, dst, wanted)
    assert not list(folder.glob(".dst*")), "a stage is left"
    shutil.rmtree(folder)
    return done, ended + 1, most


def _whole(same: Callable[[Path, Path], bool], ours: Path, wanted: Path) -> bool:
    def check() -> None:
        assert same(ours, wanted)

    return os.waitpid(_start(check), 0)[1] == 0


if __name__ == "__main__":
    main()
