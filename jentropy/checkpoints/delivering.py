"""What was made in a stage, sent to where its URL leads.

An object store has no rename: objects appear one by one. While they do, `.jentropy-sending` lies
among them, and what tells Orbax and this package that a checkpoint is whole comes last. Work that
is taken up sends what is not there as it was sent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jentropy.containers.tensor import checksum
from jentropy.errors import DestinationError, InputError

from . import durable
from .mapping import mapped
from .mirrors import SENDING, listed, version
from .remote import RemotePath, reaching
from .store import COMMITTED, METADATA_FILE

SENT = "sent.jsonl"  # beside what was made: name, bytes, hash and version of what was sent
# What says that a checkpoint is whole: sent at the end, in this order.
MARKERS = (METADATA_FILE, COMMITTED)


@contextmanager
def _writing(path: RemotePath) -> Iterator[None]:
    """Makes an error of reaching a URL one of writing there."""
    try:
        yield
    except DestinationError:
        raise
    except InputError as error:
        raise DestinationError(
            f"cannot write: {error.what}",
            file=error.file or path,
            expected=error.expected,
            found=error.found,
        ) from error


def occupied(path: RemotePath) -> bool:
    """Whether something lies where a URL leads, other than what was not sent to its end."""
    files = listed(path.remote)
    return bool(files) and SENDING not in files


def begin(path: RemotePath, names: Collection[str], *, replace: bool) -> None:
    """Clears the place for files of some names; what was there counts no more.

    Args:
      path: that stands for the URL.
      names: what may stay, to be sent again if it is not the same.
      replace: whether something whole may be there.

    Raises:
      DestinationError: something is there that may not be, or it cannot be written.
    """
    remote = path.remote
    with _writing(path), reaching(remote.url):
        there = listed(remote)
        if there and SENDING not in there and not replace:
            raise DestinationError("destination exists", file=path, expected="none", found="one")
        if SENDING not in there:
            remote.system.pipe_file(remote.place_of(SENDING), b"\n")
        gone = {name for name in there if name in MARKERS or name not in (*names, SENDING)}
        for name in sorted(gone, key=lambda name: name not in MARKERS):
            remote.system.rm_file(remote.place_of(name))


def put(made: Path, path: RemotePath, names: dict[str, str], log: Path) -> None:
    """Sends files, but those that are there as they were sent before.

    Args:
      made: the folder that has them.
      names: of each file in it, the name to give it.
      log: what was sent; it grows.
    """
    remote, known = path.remote, _sent(log)
    with _writing(path), durable.opened(log, keep=True) as stream:
        there = listed(remote)
        for here, name in names.items():
            told = [(made / here).stat().st_size, f"{checksum(mapped(made / here)):016x}"]
            if known.get(name) == [*told, *there.get(name, ())]:
                continue
            with reaching(remote.url_of(name)):
                remote.system.put_file(os.fspath(made / here), remote.place_of(name))
                now = version(remote, name)
            if now[0] != told[0]:
                raise DestinationError(
                    "bytes that arrived", file=path / name, expected=told[0], found=now[0]
                )
            stream.write(json.dumps([name, *told, *now]).encode() + b"\n")
            stream.flush()


def end(path: RemotePath) -> None:
    """Has what was sent count as whole."""
    remote = path.remote
    with _writing(path), reaching(remote.url):
        remote.system.rm_file(remote.place_of(SENDING))


def send(made: Path, path: RemotePath, *, replace: bool, keep: Collection[str] = ()) -> None:
    """Has the files of a folder, and no others, where a URL leads.

    Args:
      made: the folder, in a stage that stays until this has ended.
      path: that stands for the URL.
      replace: whether something whole may be there.
      keep: names of what was sent already.

    Raises:
      DestinationError: something is there that may not be, or it cannot be written.
    """
    names = in_order(made)
    begin(path, {*names, *keep}, replace=replace)
    put(made, path, {name: name for name in names}, made.parent / SENT)
    end(path)


def in_order(folder: Path) -> list[str]:
    """Files below a folder in the order in which they are sent."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return sorted(names, key=lambda name: (MARKERS.index(name) if name in MARKERS else -1, name))


def _sent(log: Path) -> dict[str, list[Any]]:
    """What a log tells of each file; nothing from where it is damaged on."""
    known: dict[str, list[Any]] = {}
    lines = log.read_bytes().splitlines() if log.is_file() else []
    for line in lines:
        try:
            name, *told = json.loads(line)
            known[name] = told
        except (ValueError, TypeError):
            break
    return known
