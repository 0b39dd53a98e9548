"""Work on all cores of the host."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def count() -> int:
    """Cores of this machine."""
    return os.cpu_count() or 1


def each(run: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What `run` gives for every item, in order; items are begun in order."""
    workers = min(count(), len(items))
    if workers <= 1:
        return [run(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, items))
