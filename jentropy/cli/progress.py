"""Progress bars on standard error: how much of how much, how fast, how long yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from jentropy.errors import shown

_PREFIXES = ["", "k", "M", "G", "T", "P"]


def amount(value: float, unit: str) -> str:
    """A number of units, shortened: `1.2 GB`, `34.5 M weights`, `0 weights`."""
    factor, prefix = pick_unit_and_suffix(int(value), _PREFIXES, 1000)
    digits = 0 if factor == 1 else 1
    return " ".join(f"{value / factor:.{digits}f} {prefix}{unit}".split())


class Figures(ProgressColumn):
    """`1.2 GB of 7.0 GB, 35.0 MB/s, 0:02:46 left`, as far as it is known."""

    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        parts = [amount(task.completed, self._unit)]
        if task.total is not None:
            parts[0] += f" of {amount(task.total, self._unit)}"
        # The mean: batches that end together would make any shorter time's rate jump.
        fresh = task.completed - task.fields["done"]
        if fresh > 0 and task.elapsed:
            rate = fresh / task.elapsed
            parts.append(f"{amount(rate, self._unit)}/s")
            if task.remaining:
                parts.append(f"{timedelta(seconds=round(task.remaining / rate))} left")
        return Text(", ".join(parts))


class Bar:
    """A bar that is on the terminal; called with what is done since the last call."""

    def __init__(self, progress: Progress, what: str):
        self._progress = progress
        self._task = progress.add_task(escape(shown(what)), total=None, done=0)

    def __call__(self, done: int) -> None:
        self._progress.advance(self._task, done)

    def expect(self, total: int, done: int) -> None:
        """Sets how much there is, and how much of it was done before."""
        self._progress.reset(self._task, total=total, completed=done, done=done)


def is_terminal(stream: object) -> bool:
    """Whether a standard stream is there and a terminal."""
    return bool(getattr(stream, "isatty", bool)())


@contextmanager
def progress_bar(
    what: str, *, unit: str = "B", quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar on standard error if that is a terminal, nothing otherwise.

    Args:
      what: is being done.
      unit: of the amounts that it is told.
    """
    if quiet or not is_terminal(sys.stderr):
        yield lambda amount: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), Figures(unit))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, what)
