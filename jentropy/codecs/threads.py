"""Work on all cores of the host, a thread for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from jentropy import modes

KEPT = 31 << 20  # bytes; glibc learns from blocks below 32 MiB
JOBS = "JENTROPY_JOBS"  # in the environment: how many threads to use


def count() -> int:
    """Threads to use: as many as the environment's JENTROPY_JOBS says, or this process has cores.

    Where the system tells (Linux), those are the cores that the process may run on (`taskset`,
    containers with a set of CPUs), not those of the machine.

    Returns:
      1 at the least.

    Example:
      >>> count() >= 1
      True
    """
    jobs = os.environ.get(JOBS, "")
    if jobs.isdecimal() and int(jobs):
        return int(jobs)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(run: Callable[..., Any], *columns: Iterable[Any]) -> list[Any]:
    """What `run` gives for every row of the columns, in order; rows are begun in order.

    With several threads there is one more than cores: XLA computes in threads of its own, and
    those that wait for it leave theirs idle (a tenth of the time).

    Args:
      run: takes an item of each column; called in any thread, in `modes.detached_modes`.
      columns: as many items in each.

    Raises:
      Exception: what `run` raised of the first row of which it raised anything.

    Example:
      >>> each(pow, [2, 3], [5, 2])
      [32, 9]
    """
    keep_memory()
    rows = list(zip(*columns, strict=True))
    workers = min(count() + 1, len(rows)) if count() > 1 else 1
    results: dict[int, Any] = {}
    errors: dict[int, Exception] = {}
    left = iter(enumerate(rows))  # one task a thread: one a row costs more than small rows

    def work() -> None:
        with modes.detached_modes():
            for i, row in left:
                try:
                    results[i] = run(*row)
                except Exception as error:
                    errors[i] = error
                    return

    if workers <= 1:
        work()
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda _: work(), range(workers)))
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(rows))]


@cache
def keep_memory() -> None:
    """Lets the C library keep the memory of buffers between calls.

    glibc gives freed blocks back to the system, and takes page faults for the next ones (a fifth of
    the time of encoding), unless a larger block was once allocated and freed. See mallopt(3),
    M_MMAP_THRESHOLD. No page of the block is touched.
    """
    np.empty(KEPT, np.uint8)
