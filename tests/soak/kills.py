"""Commands killed (SIGKILL) at random times, until they end: the same bytes, DST absent or whole.

Half of the kills are at a random time, half at a random step (`steps`). The next run takes up what
the killed one left. After every kill the destination is what was there before, which is nothing but
for commands that replace or repair it, or is compared as a whole; the command is given once more
then, as by somebody who does not know how far it had come: no stage is left.

    python -m tests.soak.kills FOLDER [--commands compress ...] [--kills 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jentropy
from jentropy.checkpoints import array_store, tree_writing, writer
from jentropy.errors import DestinationError

from . import sources, steps
from .sources import alike, same_arrays

UNFINISHED, REFUSED = 3, 4  # exit codes of a look at a destination, and of a run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commands", choices=COMMANDS, nargs="+", default=list(COMMANDS))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.commands:
        kills, ended, most = trial(given.folder, name, given.kills, given.seed)
        print(f"{name}: {kills} kills, {ended} ended alike, most in a row {most}", flush=True)


class Command(NamedTuple):
    """What is tried.

    Attributes:
      make: makes in a folder what the command needs, and at `before` what lies at its destination.
      run: writes `dst` in the folder.
      same: whether two results are the same.
      in_place: whether files of the destination are replaced one by one.
    """

    make: Callable[[Path], object]
    run: Callable[[Path], object]
    same: Callable[[Path, Path], bool] = alike
    in_place: bool = False


def compress(folder: Path, **options: Any) -> None:
    jentropy.compress_checkpoint(folder / "source", folder / "dst", **options)


def decompress(folder: Path, **options: Any) -> None:
    jentropy.decompress_checkpoint(folder / "packed", folder / "dst", **options)


def packed(make: Callable[[Path], Path], **options: Any) -> Callable[[Path], None]:
    """What makes a source and a compressed checkpoint of it."""
    return lambda folder: jentropy.compress_checkpoint(make(folder), folder / "packed", **options)


def another(folder: Path) -> None:
    """A source, and something else that was compressed before."""
    jentropy.compress_checkpoint(sources.noise(folder, 1), folder / "before")
    sources.noise(folder)


def damaged(name: str) -> Callable[[Path], None]:
    """A compressed checkpoint that is damaged, and its source."""

    def make(folder: Path) -> None:
        packed(sources.noise)(folder)
        os.rename(folder / "packed", folder / name)
        bundles = sorted((folder / name / "state").glob("bundles.*"))
        for bundle in bundles[::3]:
            data = bytearray((bundle / "c/0").read_bytes())
            data[100] ^= 1
            (bundle / "c/0").write_bytes(data)
        (bundles[1] / "zarr.json").unlink()
        (folder / name / "state/_METADATA").write_text("{}")

    return make


def quantize(recipe: str, **options: Any) -> Callable[[Path], None]:
    """What quantises a model by a recipe."""

    def run(folder: Path) -> None:
        from jentropy.quantization import RECIPES

        jentropy.models.quantizing.quantize_checkpoint(
            folder / "source", folder / "dst", RECIPES[recipe], **options
        )

    return run


COMMANDS = {
    "compress-noise": Command(sources.noise, compress),
    "decompress-noise": Command(packed(sources.noise), decompress),
    "compress": Command(sources.files, compress),
    "decompress": Command(packed(sources.files), decompress),
    "compress-orbax": Command(sources.steps, compress),
    "decompress-orbax": Command(packed(sources.steps), decompress, same_arrays),
    "compress-base": Command(sources.tuned, lambda f: compress(f, base=f / "base")),
    "decompress-base": Command(
        lambda f: packed(sources.tuned, base=f / "base")(f),
        lambda f: decompress(f, base=f / "base"),
    ),
    "overwrite": Command(another, lambda f: compress(f, overwrite=True)),
    "save": Command(lambda f: None, lambda f: jentropy.save(f / "dst", sources.tree())),
    "decompress-tree": Command(
        lambda f: jentropy.save(f / "packed", sources.tree()), decompress, same_arrays
    ),
    "salvage": Command(damaged("packed"), lambda f: jentropy.salvage(f / "packed", f / "dst")),
    "repair": Command(
        damaged("before"), lambda f: jentropy.repair(f / "dst", f / "source"), in_place=True
    ),
    "quantize": Command(sources.model, quantize("rtn-int4")),
    "quantize-gptq": Command(sources.model, quantize("rtn-int4", tool="gptq")),
    "quantize-gguf": Command(sources.model, quantize("q8-0", tool="gguf")),
}


def _start(run: Callable[[], object]) -> int:
    """Runs something in a child, which has all modules loaded; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        writer.BUNDLE_BYTES = 30_000
        array_store.TRANSACTION_BYTES = tree_writing.GIVEN_BYTES = 1 << 20
        code = run() or 0  # type: ignore[assignment]
    except DestinationError as error:
        print(error, file=sys.stderr)
        code = REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _in_child(run: Callable[[], object]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_start(run), 0)[1])


def _done(run: Callable[[], object]) -> None:
    code = _in_child(run)
    assert code == 0, code


class Trial:
    """Kills of a command in a folder, which is made for it."""

    def __init__(self, folder: Path, command: Command, seed: int):
        self.folder, self.command = folder, command
        self.dst, self.before = folder / "dst", folder / "before"
        self._wanted = folder / "wanted"
        self._dice = random.Random(seed)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _done(lambda: command.make(folder) and None)
        self.begin()
        began = time.monotonic()
        reads, writes = os.pipe()

        def counted() -> None:
            taken = steps.taken(folder)
            command.run(folder)
            os.write(writes, str(len(taken)).encode())

        _done(counted)
        self._whole_s = time.monotonic() - began
        self._steps = int(os.read(reads, 99))
        os.close(reads)
        os.close(writes)
        self.dst.rename(self._wanted)
        self.begin()

    def begin(self) -> None:
        """Has the destination as it is before the command."""
        shutil.rmtree(self.dst, ignore_errors=True)
        if self.before.exists():
            shutil.copytree(self.before, self.dst)

    def run(self) -> int:
        """Runs the command to its end; its exit code."""
        return _in_child(lambda: self.command.run(self.folder) and None)

    def killed(self, row: int) -> bool:
        """Runs the command and kills it at some time, unless it ends before; whether it was.

        Args:
          row: kills since it ended; the more, the more time it is given.
        """
        last, limit_s = -1, 9 * self._whole_s
        if self._dice.random() < 0.5:
            last = self._dice.randrange(self._steps)
        else:
            limit_s = self._dice.uniform(0.1, 1.1 + row / 20) * self._whole_s

        def run() -> None:
            steps.taken(self.folder, last)
            self.command.run(self.folder)

        child, began = _start(run), time.monotonic()
        while time.monotonic() - began < limit_s:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                break
            time.sleep(0.001)
        else:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), code
        return code != 0

    def ended(self) -> bool:
        """Whether the result is there; if not, all is as it was before."""
        if not self.dst.exists() and not self.command.in_place:
            return False
        code = _in_child(self._look)
        assert code in (0, UNFINISHED), f"{self.dst} is not what it should be"
        return code == 0

    def _look(self) -> int:
        """In a child, as Orbax may read."""
        if self.command.same(self.dst, self._wanted):
            return 0
        assert self._is_of_both() if self.command.in_place else alike(self.dst, self.before)
        return UNFINISHED

    def _is_of_both(self) -> bool:
        """Whether each file is as it was before, or as it is wanted."""
        now, *others = (_contents(one) for one in (self.dst, self.before, self._wanted))
        return others[0].keys() <= now.keys() and all(
            any(other.get(name) == data for other in others)
            for name, data in now.items()
            if name not in sources.TOLD
        )

    def expect_clean(self) -> None:
        """Has the command run once more where it has ended: nothing is changed, or left."""
        code = self.run()
        assert code in (0, REFUSED), code
        assert self.ended()
        assert not list(self.folder.glob(".dst*")), "a stage is left"


def _contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def trial(folder: Path, name: str, kills: int, seed: int) -> tuple[int, int, int]:
    """Kills a command so many times; how many kills, runs that ended alike, most kills of one."""
    from orbax.checkpoint import v1  # noqa: F401  loaded before children are made

    if name.startswith("quantize"):
        importlib.import_module("jentropy.models.quantizing")
    of = Trial(folder, COMMANDS[name], seed)
    done = ended = row = most = 0
    while done < kills:
        killed = of.killed(row)
        done, row = done + killed, row + killed
        if of.ended():
            if killed:
                of.expect_clean()
            of.begin()
            ended, most, row = ended + 1, max(most, row), 0
    code = of.run()
    assert code == 0, code
    of.expect_clean()
    shutil.rmtree(folder)
    return done, ended + 1, most


if __name__ == "__main__":
    main()
