"""Few sizes that programs are compiled for, whatever shapes arrays have.

A compile takes half a second and 2 MB; what is cut to sizes that are there takes microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def pieces(count: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Cuts items into pieces, each with the size of the program that it is padded to.

    A larger program is taken where it is three quarters full.

    Args:
      sizes: of programs, largest first.

    Example:
      >>> list(pieces(300, (256, 64)))
      [(slice(0, 256, None), 256), (slice(256, 300, None), 64)]
    """
    at = 0
    for size in sizes:
        while count - at > (0 if size == sizes[-1] else size * 3 // 4):
            end = min(count, at + size)
            yield slice(at, end), size
            at = end
