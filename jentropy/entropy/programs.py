"""Few sizes that programs are compiled for, whatever shapes arrays have.

A compile takes half a second and 2 MB; what is cut to sizes that are there takes microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def fitting(count: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Runs of items, each with the size of the program that it is padded to.

    All are of the largest program but the last one, which has the smallest that holds it.

    Args:
      sizes: of programs, smallest first.

    Example:
      >>> list(fitting(300, (16, 64, 256)))
      [(slice(0, 256, None), 256), (slice(256, 300, None), 64)]
    """
    for at in range(0, count, sizes[-1]):
        end = min(count, at + sizes[-1])
        yield slice(at, end), next(size for size in sizes if size >= end - at)
