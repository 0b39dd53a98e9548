"""Processes of `jax.distributed` write together, one of them killed at a random time.

The others end within the heartbeat's time, DST is absent or whole after every kill, and the same
command goes on from what is there, until it ends: the same bytes as if nobody had been killed.

    python -m tests.soak.hosts FOLDER [--what compress|save] [--processes 4] [--kills 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from pathlib import Path

import jentropy
from tests.test_hosts import all_done, processes, source

from .sources import alike

MOST_DELAY_S = 2.0  # after a step: for what no step of Python tells of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", choices=["compress", "save"], default="compress")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(trial(given.folder, given.what, given.processes, given.kills, given.seed))


def trial(folder: Path, what: str, count: int, kills: int, seed: int) -> str:
    """Kills a process so many times; what was seen."""
    dice = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    source(folder / "source")
    ends = processes(folder, count, what)
    all_done(ends)
    steps = [int(out.split()[-3]) for _, out, _ in ends]
    jentropy.verify(folder / "dst", folder / "source" if what == "compress" else None)
    (folder / "dst").rename(folder / "wanted")
    longest, ended, done = 0.0, 0, 0
    while done < kills:
        number = dice.choice([0, dice.randrange(count)])  # who commits as often as all others
        delay_s = dice.choice([0.0, dice.uniform(0, MOST_DELAY_S)])
        step = dice.randrange(steps[number])
        began = time.monotonic()
        ends = processes(folder, count, what, number, step, delay_s)
        took = time.monotonic() - began
        longest = max(longest, took)
        where = next((line for line in ends[number][1].splitlines() if "killed at" in line), "none")
        print(f"{number} {where}: {[code for code, _, _ in ends]}, {took:.0f} s", flush=True)
        done += ends[number][0] == -9
        if (folder / "dst").exists():
            ended += 1
            assert alike(folder / "dst", folder / "wanted")
            ends = processes(folder, count, what)  # as by somebody who does not know
            assert all("destination exists" in out for _, out, _ in ends), ends
            _expect_clean(folder)
        else:
            assert all(code != 0 for code, _, _ in ends), "one ended well without a destination"
    all_done(processes(folder, count, what))
    _expect_clean(folder)
    shutil.rmtree(folder)
    told = f"{kills} kills, {ended + 1} ended alike, longest {longest:.0f} s"
    return f"{what}: {count} processes, {told}"


def _expect_clean(folder: Path) -> None:
    assert alike(folder / "dst", folder / "wanted")
    assert not list(folder.glob(".dst*")), "a stage is left"
    shutil.rmtree(folder / "dst")


if __name__ == "__main__":
    main()
