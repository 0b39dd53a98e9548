"""Memory that is asked for before it is taken: too little of it is an error, not the end.

A file may claim an array of any size, and a system that is asked for more than it has ends
whoever asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jentropy.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SMALL = 1 << 26  # bytes of which nothing is asked
WORKING = 1 << 29  # what coding takes beside arrays that are wanted whole, at the most
SYSTEM, OWN = Path("/proc/meminfo"), Path("/proc/self/statm")
GROUP = Path("/sys/fs/cgroup")  # of a container
LIMITS = (("memory.max", "memory.current"),)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _rooms() -> Iterator[int]:
    try:
        lines = SYSTEM.read_text().splitlines()
        yield next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    for most, used in LIMITS:
        limit, taken = _number(GROUP / most), _number(GROUP / used)
        if limit is not None and taken is not None:
            yield limit - taken
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        try:
            if limit != resource.RLIM_INFINITY:
                yield limit - int(OWN.read_text().split()[0]) * resource.getpagesize()
        except (OSError, ValueError):
            pass


def available() -> int | None:
    """Bytes that this process may still take; None where the system does not tell.

    Example:
      >>> room = available()
      >>> room is None or room > 0
      True
    """
    return min(_rooms(), default=None)


def expect(needed: int, what: str = "memory", *, tensor: str | None = None) -> None:
    """Raises InputError if there is not so much memory.

    Args:
      needed: bytes.
      what: they are for.
      tensor: that needs them, for the message.

    Example:
      >>> expect(1000)
    """
    if needed <= SMALL:
        return
    room = available()
    if room is not None and room < needed:
        raise InputError(
            what, tensor=tensor, expected=f"{needed} bytes of memory", found=max(0, room)
        )
