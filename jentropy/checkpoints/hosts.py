"""Processes of `jax.distributed` that write one checkpoint: who does what, and where they meet.

Each has a share of what is written, and a stage of its own. They tell each other of it where they
meet, through the coordination service of `jax.distributed`, which also notices (by its heartbeat) a
process that is gone: then all others end in an error. What one of them failed with is told to all.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
import xxhash

from jentropy import jax_internals
from jentropy.errors import DestinationError, said

PIECE_BYTES = 1 << 20  # of what a message of the service may hold
WAIT_S = 4 * 3600  # for the slowest process, all of them being alive
LEAVE_S = 60  # that one which failed waits for the others to hear of it

_teams = Counter[str]()  # of this process, by what they write


class Absent(DestinationError):
    """Another process has failed, or is gone."""


class Team:
    """This process among those that write together. Made by `together`."""

    def __init__(self, number: int = 0, count: int = 1, client: Any = None, name: str = ""):
        self.number, self.count = number, count
        self._client, self._name = client, name
        self._meetings = itertools.count()

    def share(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Of items of so many bytes, the first and the end of what each process writes.

        Example:
          >>> Team(0, 2).share([5, 1, 1, 3])
          [(0, 2), (2, 4)]
        """
        ends = [0, *itertools.accumulate(size + 1 for size in sizes)]
        cuts = [bisect.bisect_left(ends, ends[-1] * p / self.count) for p in range(self.count)]
        return list(itertools.pairwise([*cuts, len(sizes)]))

    def meet(self, message: bytes = b"", *, listens: bool = True) -> list[bytes]:
        """Waits for all processes; what each brought, by its number.

        Args:
          message: of this one.
          listens: whether the messages are wanted.

        Raises:
          Absent: a process has failed or is gone.
        """
        if self.count == 1:
            return [message]
        key = self._bring(message, failed=False)
        try:
            self._client.wait_at_barrier(f"{key}/all", WAIT_S * 1000)
        except Exception as error:
            self._raise_failed(key)
            raise Absent(f"another process is gone: {said(error)}") from error
        self._raise_failed(key)
        return [self._get(f"{key}/{p}") for p in range(self.count)] if listens else []

    def fail(self, error: BaseException) -> None:
        """Has the others end in this error when they come to the next meeting."""
        if self.count == 1 or isinstance(error, Absent):
            return
        with suppress(Exception):  # they may be gone
            key = self._bring(said(error).encode(), failed=True)
            self._client.wait_at_barrier(f"{key}/all", LEAVE_S * 1000)

    def _bring(self, message: bytes, *, failed: bool) -> str:
        key = f"{self._name}/{next(self._meetings)}"
        if failed:
            self._client.key_value_set_bytes(f"{key}/failed/{self.number}", message)
            return key
        pieces = range(0, len(message), PIECE_BYTES)
        for n, at in enumerate(pieces):
            piece = message[at : at + PIECE_BYTES]
            self._client.key_value_set_bytes(f"{key}/{self.number}/{n}", piece)
        self._client.key_value_set(f"{key}/{self.number}/pieces", str(len(pieces)))
        return key

    def _get(self, key: str) -> bytes:
        """A message; all are there once everybody has come."""
        wait = LEAVE_S * 1000
        count = int(self._client.blocking_key_value_get(f"{key}/pieces", wait))
        keys = (f"{key}/{n}" for n in range(count))
        return b"".join(self._client.blocking_key_value_get_bytes(one, wait) for one in keys)

    def _raise_failed(self, key: str) -> None:
        with suppress(jax.errors.JaxRuntimeError):  # nobody's is there
            for name, why in self._client.key_value_dir_get_bytes(f"{key}/failed"):
                number = name.rpartition("/")[2]
                raise Absent(f"process {number} of {self.count} has failed: {why.decode()}")


ALONE = Team()


def _place() -> tuple[int, int]:
    """The number of this process among those of `jax.distributed`, and how many there are."""
    alone = jax_internals.coordination_client() is None
    return (0, 1) if alone else (jax.process_index(), jax.process_count())


def own_share(sizes: Sequence[int]) -> tuple[int, int]:
    """What this process will write of items of so many bytes: the first, and the end.

    Example:
      >>> own_share([5, 1])
      (0, 2)
    """
    number, count = _place()
    return Team(number, count).share(sizes)[number]


@contextmanager
def together(writes: object) -> Iterator[Team]:
    """The processes of `jax.distributed`, or this one alone; all of them come here.

    Args:
      writes: what they write, by which they find each other.
    """
    number, count = _place()
    if count == 1:
        yield ALONE
        return
    what = str(writes)
    name = f"jentropy/{xxhash.xxh3_64_hexdigest(what.encode('utf-8', 'replace'))}/{_teams[what]}"
    _teams[what] += 1
    team = Team(number, count, jax_internals.coordination_client(), name)
    try:
        yield team
    except BaseException as error:
        team.fail(error)
        raise


class Gathering:
    """Arrays that lie over several processes, each brought to the one that writes it.

    All processes take part in every array's turn, in one order: the first of each process' share,
    then the second. Whoever reads one of its own has all turns before it taken.

    Args:
      leaves: every array by its number; None for those that every process has whole.
    """

    def __init__(self, leaves: Sequence[Any]):
        self._leaves = leaves
        self._team = ALONE
        self._begin, self._next = 0, 0
        self._rounds: list[list[tuple[int, Any]]] = []  # a process and an array of its share
        self._kept: dict[int, np.ndarray] = {}
        self._read = set[int]()
        self._lock = threading.Lock()

    def deal(self, team: Team, sizes: Sequence[int]) -> None:
        """Says what each process writes, by the bytes of all; see `Team.share`."""
        self._team, shares = team, team.share(sizes)
        self._begin, _ = shares[self._team.number]
        self._rounds = [
            [(p, self._leaves[a + k]) for p, (a, b) in enumerate(shares) if a + k < b]
            for k in range(max(b - a for a, b in shares))
        ]

    def reader(self, number: int) -> Callable[[], np.ndarray]:
        """What reads an array of this process' share."""
        return lambda: self._get(number - self._begin)

    def _get(self, turn: int) -> np.ndarray:
        with self._lock:
            while self._next <= turn:
                self._take()
            for one in [one for one in self._kept if one in self._read and one < turn]:
                del self._kept[one]
            self._read.add(turn)
            return self._kept[turn]

    def finish(self) -> None:
        """Takes part in the turns that are left: other processes have more to write."""
        with self._lock:
            self._kept.clear()
            while self._next < len(self._rounds):
                self._take()
                self._kept.clear()

    def _take(self) -> None:
        for process, leaf in self._rounds[self._next]:
            if leaf is not None:
                values = jax_internals.gathered(leaf)
                if process == self._team.number:
                    self._kept[self._next] = np.ascontiguousarray(values)
        self._next += 1
