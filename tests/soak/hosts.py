"""Processes of `jax.distributed` write together, one of them killed at a random time.

The others end within the heartbeat's time, DST is absent or whole after every kill, and the same
command goes on from what is there, until it ends: the same bytes as if nobody had been killed.

    python -m tests.soak.hosts FOLDER [--what compress|save|send] [--processes 4] [--kills 20]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from pathlib import Path

import jentropy
from jentropy.checkpoints.mirrors import SENDING
from tests.object_store import Store, serving
from tests.test_hosts import all_done, processes, source, told_of

from .sources import alike

MOST_DELAY_S = 2.0  # after a step: for what no step of Python tells of
BUCKET = "bucket/dst/"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", choices=["compress", "save", "send"], default="compress")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with serving() as store:
        os.environ |= told_of(store, given.folder)
        trial = Trial(given.folder, given.what, given.processes, store)
        print(trial.run(given.kills, given.seed))


class Trial:
    """Kills of processes that write in a folder, or to a store."""

    def __init__(self, folder: Path, what: str, count: int, store: Store):
        self.folder, self.what, self.count, self.store = folder, what, count, store
        self.dst, self.wanted = folder / "dst", folder / "wanted"

    def run(self, kills: int, seed: int) -> str:
        """Kills a process so many times; what was seen."""
        dice = random.Random(seed)
        shutil.rmtree(self.folder, ignore_errors=True)
        source(self.folder / "source")
        ends = processes(self.folder, self.count, self.what)
        all_done(ends)
        steps = [int(out.split()[-3]) for _, out, _ in ends]
        assert self.arrived()
        against = None if self.what == "save" else self.folder / "source"
        jentropy.verify(self.dst, against)
        self.dst.rename(self.wanted)
        self.store.objects.clear()
        longest, ended, done = 0.0, 0, 0
        while done < kills:
            number = dice.choice([0, dice.randrange(self.count)])  # who commits as often as all
            delay_s = dice.choice([0.0, dice.uniform(0, MOST_DELAY_S)])
            step = dice.randrange(steps[number])
            began = time.monotonic()
            ends = processes(self.folder, self.count, self.what, number, step, delay_s)
            took = time.monotonic() - began
            longest = max(longest, took)
            lines = (line for line in ends[number][1].splitlines() if "killed at" in line)
            codes = [code for code, _, _ in ends]
            print(f"{number} {next(lines, 'none')}: {codes}, {took:.0f} s", flush=True)
            done += codes[number] == -9
            if self.arrived():
                ended += 1
                assert alike(self.dst, self.wanted)
                ends = processes(self.folder, self.count, self.what)  # as if nobody knew
                assert all("destination exists" in out for _, out, _ in ends), ends
                self.expect_clean()
            else:
                assert all(codes), "one ended well without a destination"
        all_done(processes(self.folder, self.count, self.what))
        self.expect_clean()
        shutil.rmtree(self.folder)
        told = f"{kills} kills, {ended + 1} ended alike, longest {longest:.0f} s"
        return f"{self.what}: {self.count} processes, {told}"

    def arrived(self) -> bool:
        """Whether there is a result; from a store it is fetched."""
        names = [name for name in self.store.objects if name.startswith(BUCKET)]
        if names and BUCKET + SENDING not in names:
            for name in names:
                file = self.dst / name.removeprefix(BUCKET)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(self.store.objects[name])
        return self.dst.exists()

    def expect_clean(self) -> None:
        """Has the result there, and no stage, and removes it."""
        assert self.arrived()
        assert alike(self.dst, self.wanted)
        assert not list(self.folder.rglob(".dst*")), "a stage is left"
        shutil.rmtree(self.dst)
        self.store.objects.clear()


if __name__ == "__main__":
    main()
