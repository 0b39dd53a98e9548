"""Arrays on the device, and which blocks of threads have seen what of them.

What a block writes is its own until a warp that knows of it fences (membar or fence.acq_rel of
scope gpu or wider), and another block may read it only after it fenced in turn, having read an
atomic number that was written after. Else it may read what was there before: that is a fault here.
A warp knows of its own writes, and of what others of its block did before barriers that both met.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .fault import Fault

FIRST, APART = 1 << 33, 1 << 33  # addresses of arrays


@dataclass(slots=True)
class Seen:
    """What a warp knows of the device's memory.

    Attributes:
      writes: how many writes it knows of, by writers: warps of its block.
      published: the last fence of those that it may let others know of.
      acquired: fences of others up to this one have been seen.
      pending: that were read of an atomic number, and count from the next fence on.
    """

    writes: dict[Any, int] = field(default_factory=dict)
    published: int = 0
    acquired: int = 0
    pending: int = 0

    def join(self, other: Seen) -> None:
        """Knows what another does, who came to the same barrier."""
        for writer, count in other.writes.items():
            self.writes[writer] = max(self.writes.get(writer, 0), count)
        self.published = max(self.published, other.published)
        self.acquired = max(self.acquired, other.acquired)


class GlobalMemory:
    """Operands, results and variables, as bytes."""

    def __init__(self, arrays: list[np.ndarray], variables: dict[str, int]) -> None:
        self.arrays = [*arrays, *(np.zeros(size, np.uint8) for size in variables.values())]
        self.variables = {name: self.address(len(arrays) + i) for i, name in enumerate(variables)}
        self.launch_parameters: list[Any] = []
        self.fences = 0
        self.stamps: dict[int, int] = {}  # of atomic numbers
        # Of written words of four bytes: which write of which warp, and the fence after it.
        self.written: list[dict[int, tuple[Any, int, int]]] = [{} for _ in self.arrays]

    @staticmethod
    def address(number: int) -> int:
        """Where an array begins."""
        return FIRST + number * APART

    def _place(self, addresses: np.ndarray, size: int) -> tuple[int, np.ndarray]:
        number = (int(addresses[0]) - FIRST) // APART
        offsets = addresses.astype(np.int64) - self.address(number)
        if not 0 <= number < len(self.arrays):
            raise Fault(f"an address of no array: {int(addresses[0]):#x}")
        if offsets.min() < 0 or offsets.max() + size > self.arrays[number].size:
            raise Fault(f"outside of array {number}: {offsets.min()} to {offsets.max() + size}")
        if (offsets % size).any():
            raise Fault("a misaligned address on the device")
        return number, offsets

    def read(self, addresses: np.ndarray, size: int, block: Any, seen: Seen) -> np.ndarray:
        """Bytes [lanes, size]."""
        number, offsets = self._place(addresses, size)
        if self.written[number]:
            for word in _words(offsets, size):
                self._check(number, word, block, seen)
        return self.arrays[number][offsets[:, None] + np.arange(size)]

    def _check(self, number: int, offset: int, block: Any, seen: Seen) -> None:
        known = self.written[number].get(offset)
        if known is None:
            return
        (writer, _), _, fence = known
        if writer == block:
            return
        if not fence:
            raise Fault(f"block {block} reads what block {writer} has not fenced off")
        if fence > seen.acquired:
            raise Fault(f"block {block} has not acquired what it reads of block {writer}")

    def write(self, addresses: np.ndarray, data: np.ndarray, writer: Any, seen: Seen) -> None:
        """Writes bytes [lanes, size]."""
        number, offsets = self._place(addresses, data.shape[1])
        self.arrays[number][offsets[:, None] + np.arange(data.shape[1])] = data
        count = seen.writes[writer] = seen.writes.get(writer, 0) + 1
        for word in _words(offsets, data.shape[1]):
            self.written[number][word] = (writer, count, 0)

    def fence(self, seen: Seen) -> None:
        """Makes what a warp knows of known to others, and takes what it was told."""
        self.fences += 1
        for written in self.written:
            for offset, (writer, count, fence) in written.items():
                if not fence and seen.writes.get(writer, 0) >= count:
                    written[offset] = (writer, count, self.fences)
        seen.published = self.fences
        seen.acquired = max(seen.acquired, seen.pending)

    def atomic(
        self, address: int, operation: str, size: int, operand: int, semantics: set[str], seen: Seen
    ) -> int:
        """An atomic operation of one lane; what was there before."""
        if semantics & {"release", "acq_rel"}:
            self.fence(seen)
        number, offsets = self._place(np.array([address]), size)
        cell = self.arrays[number][offsets[0] : offsets[0] + size].view(f"u{size}")
        before = int(cell[0])
        after = {
            "add": before + operand,
            "exch": operand,
            "inc": 0 if before >= operand else before + 1,
            "ld": before,
        }[operation]
        cell[0] = after & ((1 << 8 * size) - 1)
        seen.pending = max(seen.pending, self.stamps.get(address, 0))
        if operation != "ld":
            self.stamps[address] = max(self.stamps.get(address, 0), seen.published)
        if semantics & {"acquire", "acq_rel"}:
            seen.acquired = max(seen.acquired, seen.pending)
        return before


def _words(offsets: np.ndarray, size: int) -> list[int]:
    """The words of four bytes that bytes from some offsets on lie in."""
    first = offsets // 4 * 4
    return (first[:, None] + np.arange(0, size, 4)).ravel().tolist()
