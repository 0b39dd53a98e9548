"""Work on all cores of the host."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from jentropy import modes

KEPT = 31 << 20  # bytes; glibc learns from blocks below 32 MiB
JOBS = "JENTROPY_JOBS"  # in the environment: how many cores to use


def count() -> int:
    """Cores to use: those of this machine, or as many as the environment's JENTROPY_JOBS says."""
    jobs = os.environ.get(JOBS, "")
    return int(jobs) if jobs.isdecimal() and int(jobs) else os.cpu_count() or 1


def each(run: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What `run` gives for every item, in order; items are begun in order.

    On several cores there is one thread more than cores: XLA computes in threads of its own, and
    those that wait for it leave theirs idle (a tenth of the time).

    Raises:
      Exception: what `run` raised of the first item of which it raised anything.
    """
    _keep_memory()
    workers = min(count() + 1, len(items)) if count() > 1 else 1
    if workers <= 1:
        with modes.detached_modes():
            return [run(item) for item in items]
    results: list[Any] = [None] * len(items)
    errors: dict[int, Exception] = {}
    left = iter(range(len(items)))  # one task a thread: one an item costs more than small items

    def work() -> None:
        with modes.detached_modes():
            for i in left:
                try:
                    results[i] = run(items[i])
                except Exception as error:
                    errors[i] = error
                    return

    with ThreadPoolExecutor(workers) as pool:
        for task in [pool.submit(work) for _ in range(workers)]:
            task.result()
    if errors:
        raise errors[min(errors)]
    return results


@cache
def _keep_memory() -> None:
    """Lets the C library keep the memory of buffers between calls.

    glibc gives freed blocks back to the system, and takes page faults for the next ones (a fifth of
    the time of encoding), unless a larger block was once allocated and freed. See mallopt(3),
    M_MMAP_THRESHOLD. No page of the block is touched.
    """
    np.empty(KEPT, np.uint8)
