"""Timing, and what is said of a measurement."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import jax

REPEATS = 5
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


def median_seconds(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median time of a call, after one that is not counted (compilation, caches)."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def one_core() -> Iterator[None]:
    """Keeps this thread, and those that it starts, on one core (where the system can)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment() -> dict[str, Any]:
    """Device, versions and date of a run."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
