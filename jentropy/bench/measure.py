"""Timing, and what is said of a measurement."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

REPEATS = 5
QUEUE_SECONDS, MOST_QUEUED = 0.01, 50  # of calls that are awaited together
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
    "zstandard",
    "zipnn",
    "openzl",
    "blosc2",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row: a name and its figures; units stand in the figures' names."""

    name: str
    figures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def median_seconds(run: Callable[[], Any], repeats: int | None = None) -> float:
    """Median time of REPEATS calls, after one that is not counted (compilation, caches).

    Args:
      run: what is called; what it gives is waited for.
      repeats: how often, if not REPEATS times.

    Returns:
      Seconds of a call.

    Example:
      >>> median_seconds(lambda: None, repeats=3) < 1
      True
    """
    return side_by_side({"run": run}, repeats)["run"]


def queued_seconds(run: Callable[[], Any]) -> float:
    """Median time of a call of many that are enqueued together and awaited once.

    To await every call would add what dispatch takes, some 50 us on a GPU.

    Args:
      run: what is called; it may give arrays that are still being computed.

    Returns:
      Seconds of a call.

    Example:
      >>> queued_seconds(lambda: None) < 1
      True
    """
    once = median_seconds(run, 1)
    count = min(MOST_QUEUED, max(1, round(QUEUE_SECONDS / once)))

    def queue() -> Any:
        return [run() for _ in range(count)][-1]

    return median_seconds(queue) / count


def side_by_side(
    runs: Mapping[str, Callable[[], Any]], repeats: int | None = None
) -> dict[str, float]:
    """Median times of calls that take turns, after a round that is not counted.

    What else the machine does then meets all of them alike.

    Args:
      runs: by name.
      repeats: rounds, if not REPEATS.

    Returns:
      Seconds of a call by name.

    Example:
      >>> sorted(side_by_side({"a": lambda: 1, "b": lambda: 2}, repeats=1))
      ['a', 'b']
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + (REPEATS if repeats is None else repeats)):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(series[1:]) for name, series in times.items()}


def on_one_core(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same call with all threads of this process on one processor (where the system can)."""
    threads = Path("/proc/self/task")
    if not hasattr(os, "sched_setaffinity") or not threads.is_dir():
        return run

    def place(processors: set[int]) -> None:
        for thread in threads.iterdir():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), processors)

    def pinned() -> Any:
        before = os.sched_getaffinity(0)
        place({min(before)})
        try:
            return jax.block_until_ready(run())
        finally:
            place(before)

    return pinned


def environment() -> dict[str, Any]:
    """Device, versions and date of a run, as plain data.

    Example:
      >>> sorted(environment())
      ['cores', 'date', 'device', 'python', 'versions']
    """
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
