"""Random damage to every file of a compressed checkpoint: `verify` finds all of it.

Bits flipped, bytes overwritten, runs zeroed, files cut, lengthened, emptied, removed, added, two
files exchanged. All files in turn.

    python -m tests.soak.damages FOLDER [--damages 10000] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

import jentropy
from jentropy.checkpoints import writer
from jentropy.errors import JentropyError

from .measuring import write_safetensors

Harm = Callable[[random.Random, Path, Path], None]  # of a file, and of the checkpoint


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--damages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found, kinds = trial(given.folder, given.damages, given.seed)
    print(f"{found} of {given.damages} damages found: {kinds}")


def _bit(dice: random.Random, file: Path, _: Path) -> None:
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)


def _byte(dice: random.Random, file: Path, _: Path) -> None:
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= dice.randrange(1, 256)
    file.write_bytes(data)


def _zeros(dice: random.Random, file: Path, folder: Path) -> None:
    data, at = bytearray(file.read_bytes()), 0
    at = dice.randrange(len(data))
    part = data[at : at + dice.choice((1, 16, 512))]
    if not any(part):
        return _bit(dice, file, folder)
    data[at : at + len(part)] = bytes(len(part))
    file.write_bytes(data)
    return None


def _cut(dice: random.Random, file: Path, _: Path) -> None:
    file.write_bytes(file.read_bytes()[: dice.randrange(file.stat().st_size)])


def _longer(dice: random.Random, file: Path, _: Path) -> None:
    with file.open("ab") as stream:
        stream.write(dice.randbytes(dice.randint(1, 30)))


def _lost(_: random.Random, file: Path, __: Path) -> None:
    file.unlink()


def _added(dice: random.Random, file: Path, _: Path) -> None:
    (file.parent / f"{dice.choice('abcd')}{dice.randrange(99)}").write_bytes(b"x")


def _exchanged(dice: random.Random, file: Path, folder: Path) -> None:
    others = [p for p in _files(folder) if p.read_bytes() != file.read_bytes()]
    other = dice.choice(others)
    data = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)


HARMS: dict[str, Harm] = {
    "bit": _bit,
    "byte": _byte,
    "zeros": _zeros,
    "cut": _cut,
    "longer": _longer,
    "lost": _lost,
    "added": _added,
    "exchanged": _exchanged,
}


OF_EMPTY = ["longer", "lost", "added", "exchanged"]  # files


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def made(folder: Path) -> Path:
    """A compressed checkpoint of several bundles, codecs and kinds of files."""
    source = folder / "source"
    rng = np.random.default_rng(0)

    def fill(number: int, size: int):
        weights = (rng.standard_normal(size // 2) * 0.02).astype(ml_dtypes.bfloat16)
        yield (weights.tobytes() if number < 2 else rng.bytes(size))[:size]

    tensors = {
        "a": ("BF16", [40, 100]),
        "b": ("BF16", [900]),
        "c": ("U8", [1500]),
        "d": ("U8", [1100]),
    }
    write_safetensors(source / "model.safetensors", tensors, fill)
    (source / "config.json").write_text("{}")
    before, writer.BUNDLE_BYTES = writer.BUNDLE_BYTES, 1000
    try:
        jentropy.compress_checkpoint(source, folder / "whole")
    finally:
        writer.BUNDLE_BYTES = before
    return folder / "whole"


def trial(folder: Path, damages: int, seed: int) -> tuple[int, dict[str, int]]:
    """Does so many damages, each to the whole checkpoint; how many were found, by kind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole, copy, dice = made(folder), folder / "copy", random.Random(seed)
    jentropy.verify(whole)
    shutil.copytree(whole, copy)
    names = [path.relative_to(whole) for path in _files(whole)]
    found, kinds = 0, dict.fromkeys(HARMS, 0)
    for number in range(damages):
        name = names[number % len(names)]
        kind = dice.choice([*HARMS] if (copy / name).stat().st_size else OF_EMPTY)
        HARMS[kind](dice, copy / name, copy)
        try:
            jentropy.verify(copy)
        except JentropyError:
            found, kinds[kind] = found + 1, kinds[kind] + 1
        else:
            print(f"not found: {kind} of {name}, number {number}", flush=True)
        _restore(whole, copy)
    shutil.rmtree(folder)
    return found, {kind: count for kind, count in kinds.items() if count}


def _restore(whole: Path, copy: Path) -> None:
    """Makes a copy whole again."""
    for path in _files(copy):
        if not (whole / path.relative_to(copy)).exists():
            path.unlink()
    for path in _files(whole):
        target = copy / path.relative_to(whole)
        if not target.exists() or target.read_bytes() != path.read_bytes():
            shutil.copyfile(path, target)


if __name__ == "__main__":
    main()
