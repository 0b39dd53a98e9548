"""Telling of progress."""

from __future__ import annotations

from collections.abc import Callable

# Called with the amount done since the last call. One that has a method `expect` is first told of
# the whole amount, and of how much of it earlier work has done.
Progress = Callable[[int], None]


def expect(progress: Progress | None, total: int, done: int = 0) -> None:
    """Tells of the whole amount and of what is done already, as far as that is wanted."""
    told = getattr(progress, "expect", None)
    if told is not None:
        told(total, done)
    elif progress is not None and done:
        progress(done)
