"""Telling of progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

# Called with the amount done since the last call. One that has a method `expect` is first told of
# the whole amount, and of how much of it earlier work has done.
Progress = Callable[[int], None]


def expect(progress: Progress | None, total: int, done: int = 0) -> None:
    """Tells of the whole amount and of what is done already, as far as that is wanted.

    Args:
      progress: what is told; None: nothing is.
      total: the whole amount, in the unit of the calls.
      done: how much of it earlier work has done.

    Example:
      >>> expect(print, 10, done=4)
      4
    """
    told = getattr(progress, "expect", None)
    if told is not None:
        told(total, done)
    elif progress is not None and done:
        progress(done)


def counted(arrays: Iterable[np.ndarray], progress: Progress | None) -> Iterator[np.ndarray]:
    """The same arrays; tells of the bytes of each when the next one is asked for.

    Example:
      >>> [array.size for array in counted([np.zeros(2, np.uint8), np.zeros(3, np.uint8)], print)]
      2
      3
      [2, 3]
    """
    for array in arrays:
        yield array
        if progress:
            progress(array.nbytes)
