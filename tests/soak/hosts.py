"""Several processes of `jax.distributed` compress together, one of them killed at a random time.

The others end within the heartbeat's time, DST is absent or whole after every kill, and the same
command goes on from what is there, until it ends: the same files as from the source.

    python -m tests.soak.hosts FOLDER [--processes 4] [--kills 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from pathlib import Path

import jentropy
from tests.test_hosts import all_done, processes, source

from .kills import alike


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(trial(given.folder, given.processes, given.kills, given.seed))


def trial(folder: Path, count: int, kills: int, seed: int) -> str:
    """Kills a process so many times; what was seen."""
    dice = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    source(folder / "source")
    longest, ended, row = 0.0, 0, 0
    for _ in range(kills):
        began = time.monotonic()
        ends = processes(folder, count, "compress", dice.randrange(count), dice.randrange(6))
        longest = max(longest, time.monotonic() - began)
        row += 1
        if (folder / "dst").exists():
            ended, row = ended + 1, 0
            _whole(folder)
        else:
            assert all(code != 0 for code, _, _ in ends), "one ended well without a destination"
    all_done(processes(folder, count, "compress"))
    _whole(folder)
    assert not list(folder.glob(".dst*")), "a stage is left"
    shutil.rmtree(folder)
    return f"{count} processes, {kills} kills, {ended + 1} ended alike, longest {longest:.0f} s"


def _whole(folder: Path) -> None:
    assert jentropy.verify(folder / "dst", folder / "source").compared
    jentropy.decompress_checkpoint(folder / "dst", folder / "out")
    assert alike(folder / "out", folder / "source")
    shutil.rmtree(folder / "dst")
    shutil.rmtree(folder / "out")


if __name__ == "__main__":
    main()
