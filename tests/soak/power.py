"""Power lost at every sync of a command: the destination is whole, or not there, or goes on.

What a disk has after a loss is between two extremes, both of which are looked at after every sync
and rename: *late*, where only what was synced is there (names of a folder as at its last sync, a
file's bytes as at its own), and *early*, where all names are there and of bytes those that were
synced. A command that ended has its result there in both. Random ones of the states between are
given to the command again, which has to come to the same bytes.

    python -m tests.soak.power FOLDER [--again 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jentropy
from jentropy.checkpoints import writer
from jentropy.errors import DestinationError

from .sources import alike, noise

Names = dict[str, int]  # inodes by the name in a folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--again", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for command in COMMANDS:
        moments, looked_at, again = trial(given.folder, command, given.again, given.seed)
        print(f"{command}: {moments} moments, {looked_at} states, {again} taken up", flush=True)


class Disk:
    """What is known to be on the disk of a folder whose files this process writes."""

    def __init__(self, root: Path):
        self.root = root
        self.kinds: dict[int, int] = {}
        self.names: dict[int, Names] = {}
        self.data: dict[int, bytes] = {}
        self.times: dict[int, int] = {}
        self._sync_all(root)

    def _sync_all(self, path: Path) -> None:
        self.sync(path)
        for inside in path.iterdir() if path.is_dir() else ():
            self._sync_all(inside)

    def sync(self, path: Path) -> None:
        """Notes a file or a folder as it is now."""
        told = path.stat()
        self.kinds[told.st_ino] = told.st_mode
        if stat.S_ISDIR(told.st_mode):
            self.names[told.st_ino] = self._listed(path)
        else:
            self.data[told.st_ino] = path.read_bytes()
            self.times[told.st_ino] = told.st_mtime_ns

    def _listed(self, path: Path) -> Names:
        listed = {entry.name: entry.lstat() for entry in path.iterdir()}
        for told in listed.values():
            self.kinds[told.st_ino] = told.st_mode
        return {name: told.st_ino for name, told in listed.items()}

    def late(self, out: Path) -> None:
        """Writes what is there if nothing was that was not synced."""
        self._write(out, self.root.stat().st_ino)

    def _write(self, out: Path, inode: int) -> None:
        if stat.S_ISDIR(self.kinds[inode]):
            out.mkdir(mode=0o700)
            for name, inside in self.names.get(inode, {}).items():
                self._write(out / name, inside)
        else:
            self._put(out, inode)

    def _put(self, out: Path, inode: int) -> None:
        """Writes what is there of a file, which is of the time of its sync."""
        out.write_bytes(self.data.get(inode, b""))
        if inode in self.times:
            os.utime(out, ns=(self.times[inode], self.times[inode]))

    def early(self, out: Path) -> None:
        """Writes what is there if all names were, and synced bytes."""
        shutil.copytree(self.root, out, copy_function=self._synced)
        for path in out.rglob(".*"):
            path.chmod(0o700)

    def _synced(self, source: str, target: str) -> None:
        self._put(Path(target), os.stat(source).st_ino)


@contextmanager
def watched(disk: Disk, look: Callable[[], None]) -> Iterator[None]:
    """Notes every sync, and looks after each of them and after renames."""
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_relative_to(disk.root):
            disk.sync(path)
            look()

    def moved(how: Callable[..., None]) -> Callable[..., None]:
        def run(*paths, **options) -> None:
            how(*paths, **options)
            if not any("frame" in Path(path).parts for path in paths):  # of Orbax' own threads
                look()

        return run

    os.fsync, os.rename, os.replace = noted, moved(rename), moved(replace)
    try:
        yield
    finally:
        os.fsync, os.rename, os.replace = fsync, rename, replace


def _compress(folder: Path) -> Path:
    jentropy.compress_checkpoint(folder / "source", folder / "new" / "dst")
    return folder / "new" / "dst"


def _decompress(folder: Path) -> Path:
    jentropy.decompress_checkpoint(folder / "packed", folder / "new" / "dst")
    return folder / "new" / "dst"


def _overwrite(folder: Path) -> Path:
    jentropy.compress_checkpoint(folder / "source", folder / "packed", overwrite=True)
    return folder / "packed"


COMMANDS: dict[str, Callable[[Path], Path]] = {
    "compress": _compress,
    "decompress": _decompress,
    "overwrite": _overwrite,
}


def trial(folder: Path, command: str, again: int, seed: int) -> tuple[int, int, int]:
    """Runs a command; how many moments and states were looked at, and how many taken up."""
    shutil.rmtree(folder, ignore_errors=True)
    root = (folder / "disk").resolve()
    root.mkdir(parents=True)
    before, writer.BUNDLE_BYTES = writer.BUNDLE_BYTES, 200_000
    noise(root)
    jentropy.compress_checkpoint(root / "source", root / "packed")
    run, dice, count = COMMANDS[command], random.Random(seed), [0, 0]
    wanted = folder / "wanted"
    shutil.copytree(root, wanted)
    target = run(wanted).relative_to(wanted)
    disk, kept = Disk(root), list[Path]()

    def look() -> None:
        count[0] += 1
        for number, write in enumerate((disk.late, disk.early)):
            state = folder / f"state-{count[0]}-{number}"
            write(state)
            count[1] += 1
            _expect_whole(state / target, wanted / target, there=False)
            if dice.random() < 0.1 and len(kept) < again:
                kept.append(state)
            else:
                shutil.rmtree(state)

    with watched(disk, look):
        run(root)
    for write in (disk.late, disk.early):
        write(folder / "ended")
        _expect_whole(folder / "ended" / target, wanted / target, there=True)
        shutil.rmtree(folder / "ended")
    for state in kept:
        with suppress(DestinationError):  # it is there: what is left beside it is removed
            run(state)
        _expect_whole(state / target, wanted / target, there=True)
        left = [path for path in state.rglob(".*") if "jentropy" in path.name]
        assert not left, f"{left} are left"
    writer.BUNDLE_BYTES = before
    shutil.rmtree(folder)
    return count[0], count[1], len(kept)


def _expect_whole(ours: Path, wanted: Path, *, there: bool) -> None:
    assert ours.exists() or not there, f"{ours} is not there"
    if ours.exists() and not alike(ours, wanted):
        sides = ({p.relative_to(f): p for p in f.rglob("*") if p.is_file()} for f in (ours, wanted))
        a, b = sides
        lost = sorted(map(str, a.keys() ^ b.keys()))
        other = [str(n) for n in a.keys() & b.keys() if a[n].read_bytes() != b[n].read_bytes()]
        raise AssertionError(f"{ours}: {lost} in one of the two only, {sorted(other)} differ")


if __name__ == "__main__":
    main()
