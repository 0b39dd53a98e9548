"""Stages of the processes that write one compressed checkpoint, and what a kill leaves of them.

Each has one beside the destination, with its bundles. Before it puts all in place, the first takes
the bundles of the others; which, is noted in its stage, so that whoever resumes gives them back.
One process alone is the first.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jentropy.errors import DestinationError

from . import durable, faults
from .hosts import ALONE, Team
from .staging import OUT, give_up, is_there, recover, refuse_existing, stage_of
from .store import ARRAYS, bundle_name, is_compressed_checkpoint

PURPOSE = "compress"
TAKEN = "taken.json"  # in the stage of the first: the bytes of everybody's bundles

Sizes = Sequence[Sequence[int]]  # bytes of each process' bundles


def purpose_of(number: int, count: int) -> str:
    """What the stage of one of several processes is for; see `staging.stage_of`."""
    return PURPOSE if number == 0 else f"{PURPOSE}-{number}-of-{count}"


def other_than_compressed(path: Path) -> str:
    """What a path holds, if that is no compressed checkpoint."""
    return "" if is_compressed_checkpoint(path) else "no compressed checkpoint"


def expect_free(path: Path, team: Team = ALONE, *, overwrite: bool = False) -> None:
    """Ends what an earlier run was killed in while it put its work in place.

    Args:
      team: who will write it, all of whom come here.
      overwrite: whether a compressed checkpoint may be there.

    Raises:
      DestinationError: something is there that may not be replaced.
    """
    was_done = b""
    if team.number == 0:
        recover(path, PURPOSE)
        if is_there(path) and not stage_of(path, PURPOSE).exists():
            was_done = b"done"
            give_up_others(path)
        _give_back(path)
    if team.meet(was_done)[0]:  # their stages may lie on other machines
        give_up(path, purpose_of(team.number, team.count))
    refuse_existing(path, other_than_compressed if overwrite else None)


def give_up_others(path: Path, count: int = 1) -> None:
    """Removes what runs of another number of processes than so many have left."""
    begin = f".{path.name}.jentropy-"
    for stage in path.parent.glob(f"{glob.escape(begin)}{PURPOSE}-*-of-*"):
        if not stage.name.endswith(f"-of-{count}"):
            give_up(path, stage.name.removeprefix(begin))


def take_bundles(path: Path, sizes: Sizes) -> None:
    """Moves the bundles of all other processes to those of the first.

    Raises:
      DestinationError: there is none where it should be.
    """
    if len(sizes) == 1:
        return
    stage = stage_of(path, PURPOSE)
    durable.write(stage / TAKEN, json.dumps(sizes).encode())
    durable.sync_folder(stage)
    for theirs, ours in _moves(path, sizes):
        if not theirs.is_dir():
            raise DestinationError(
                "bundle of another process",
                file=path,
                expected="a folder that all processes share",
                found=f"no {theirs}",
            )
        os.rename(theirs, ours)
    durable.sync_folder(stage / OUT / ARRAYS)


def _give_back(path: Path) -> None:
    """Undoes `take_bundles` of a run that ended before all was in place."""
    record = stage_of(path, PURPOSE) / TAKEN
    if not record.is_file():
        return
    with faults.writing(path):
        for theirs, ours in _moves(path, json.loads(record.read_bytes())):
            if ours.is_dir() and theirs.parent.is_dir() and not theirs.exists():
                os.rename(ours, theirs)
        record.unlink()


def _moves(path: Path, sizes: Sizes) -> Iterator[tuple[Path, Path]]:
    """Bundles of the others, each where it was written and where the first takes it."""
    ours, number = stage_of(path, PURPOSE) / OUT / ARRAYS, len(sizes[0])
    for process, made in enumerate(sizes[1:], 1):
        theirs = stage_of(path, purpose_of(process, len(sizes))) / OUT / ARRAYS
        for n in range(len(made)):
            yield theirs / bundle_name(n), ours / bundle_name(number)
            number += 1
