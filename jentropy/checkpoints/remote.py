"""Paths of what lies behind a URL: `gs://`, `s3://`, `memory://`, `https://`, all of fsspec's.

A `RemotePath` is a path of a local *mirror*: a folder in which every name stands for a file behind
the URL. The files there are empty at first. One that is opened is fetched whole (`fetch`); one that
is read in parts stays empty (`read`), so that weights pass through memory alone. Errors name the
URL. `mirrors` makes them.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jentropy.errors import InputError, TruncatedError, said

SECRET = re.compile(r"(?<=://)[^/@]*@")  # a user's name and password
ANY = re.compile(".*", re.DOTALL)
GONE = 404  # of HTTP
PART_BYTES, TOGETHER = 1 << 25, 8  # of what one request asks for, and how many are made at a time

Files = dict[str, tuple[int, str]]  # bytes and version of each file, by relative path


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turns whatever a file system behind a URL raises into one InputError that names the URL."""
    try:
        yield
    except InputError as error:
        raise error.at(file=url) from error.__cause__
    except Exception as error:  # each file system has exceptions of its own
        missing = isinstance(error, FileNotFoundError)
        why = error.__cause__ if missing else error  # which some call a file that is not there
        if why is None or getattr(why, "status", None) == GONE:
            raise InputError("no such file or directory", file=url) from error
        raise InputError(f"cannot be reached: {SECRET.sub('', said(why))}", file=url) from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Remote:
    """A file or a folder behind a URL.

    Attributes:
      url: of it, without a password.
      system: fsspec's, of its kind.
      place: its path there.
      alone: whether it is what lies around a single file, of which only that and configs are known.
      files: the files in it, as they were when it was opened.
      fetched: those of them that lie in the mirror.
    """

    url: str
    system: Any
    place: str
    alone: bool = False
    files: Files = field(default_factory=dict)
    fetched: set[str] = field(default_factory=set)
    lock: Any = field(default_factory=threading.RLock)

    def url_of(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{name}" if name else self.url

    def place_of(self, name: str) -> str:
        """Its path in the file system."""
        return f"{self.place}/{name}" if name else self.place


_roots: dict[str, Remote] = {}  # by the path of the mirror


def stands_for(root: RemotePath, remote: Remote) -> None:
    """Has a path, and those below it, stand for what lies behind a URL."""
    _roots[os.fspath(root)] = remote


class RemotePath(type(Path())):  # type: ignore[misc]
    """A path of a mirror; see this module."""

    def _found(self) -> tuple[Remote | None, str]:
        """What it belongs to, and its name there."""
        parts: list[str] = []
        for path in (self, *self.parents):
            if (remote := _roots.get(os.fspath(path))) is not None:
                return remote, "/".join(reversed(parts))
            parts.append(path.name)
        return None, ""

    @property
    def url(self) -> str:
        """What messages call it."""
        remote, name = self._found()
        return os.fspath(self) if remote is None else remote.url_of(name)

    @property
    def remote(self) -> Remote:
        """What it belongs to."""
        remote, _ = self._found()
        assert remote is not None, self
        return remote

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """What the system says of the file in the mirror, but for its size."""
        told = super().stat(follow_symlinks=follow_symlinks)
        remote, name = self._found()
        if remote is None or name not in remote.files:
            return told
        whole = told.__reduce__()[1][1]  # with nanoseconds
        return os.stat_result((*told[:6], remote.files[name][0], *told[7:]), whole)

    def fetch(self) -> None:
        """Has the file's bytes in the mirror.

        Raises:
          InputError: they cannot be fetched; by its URL.
        """
        remote, name = self._found()
        if remote is None or name not in remote.files:
            return
        with remote.lock:
            if name in remote.fetched:
                return
            coming = f"{os.fspath(self)}.coming"
            with reaching(self.url):
                remote.system.get_file(remote.place_of(name), coming)
                _expect(os.path.getsize(coming), remote.files[name][0])
                os.replace(coming, self)
            remote.fetched.add(name)

    def fetch_below(self, wanted: re.Pattern[str] = ANY) -> None:
        """Has the bytes of the files in a folder in the mirror.

        Args:
          wanted: what their names match.
        """
        remote, name = self._found()
        above = f"{name}/" if name else ""
        for file in remote.files if remote else ():
            if file.startswith(above) and wanted.fullmatch(file):
                (self / file.removeprefix(above)).fetch()

    def read(self, offset: int, size: int) -> bytearray:
        """Bytes of the file from there on; fewer where it ends.

        Raises:
          InputError: they cannot be read, or others came; by its URL.
        """
        remote, name = self._found()
        assert remote is not None
        end = min(offset + size, remote.files[name][0])
        data, place = bytearray(max(0, end - offset)), remote.place_of(name)
        for first in range(offset, end, TOGETHER * PART_BYTES):
            last = min(first + TOGETHER * PART_BYTES, end)
            begins = list(range(first, last, PART_BYTES))
            ends = [*begins[1:], last]
            with reaching(self.url):
                parts = remote.system.cat_ranges(
                    [place] * len(begins), begins, ends, on_error="raise"
                )
                for begin, stop, part in zip(begins, ends, parts, strict=True):
                    _expect(len(part), stop - begin)
                    data[begin - offset : stop - offset] = part
        return data


def _expect(found: int, expected: int) -> None:
    """Raises TruncatedError where other bytes came than were asked for."""
    if found != expected:
        raise TruncatedError("what the server gave", expected=f"{expected} bytes", found=found)
