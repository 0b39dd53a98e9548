"""A block of threads: shared memory, barriers, and work that is done later.

Addresses of shared memory have the block's rank in its cluster from bit 24 on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .fault import Fault
from .global_memory import GlobalMemory, Seen
from .host import TensorMap

RANK_BIT, BASE = 24, 1024  # of an address; where memory begins, aligned as swizzles need it
POISON = 0xFF  # of every byte: NaN


@dataclass(slots=True)
class Barrier:
    """An mbarrier: a phase is over when all have arrived and all bytes that it was told of have."""

    count: int
    pending: int
    bytes_left: int = 0
    phase: int = 0
    seen: Seen = field(default_factory=Seen)

    def arrive(self, count: int = 1) -> None:
        """Counts threads that arrive."""
        if count > self.pending:
            raise Fault("an mbarrier has more arrivals than it waits for")
        self.pending -= count
        self._turn()

    def complete(self, size: int) -> None:
        """Counts bytes that came."""
        self.bytes_left -= size
        self._turn()

    def _turn(self) -> None:
        if self.pending == 0 and self.bytes_left == 0:
            self.phase ^= 1
            self.pending = self.count


@dataclass(slots=True)
class Job:
    """Work that is done later.

    Attributes:
      run: does it.
      done: whether it has been.
    """

    run: Callable[[], None]
    done: bool = False


class Block:
    """State of a block of threads."""

    def __init__(self, place: tuple[int, int, int], rank: int, size: int, memory: GlobalMemory):
        self.place, self.rank, self.memory = place, rank, memory
        self.base = (rank << RANK_BIT) + BASE
        self.shared = np.full(size, POISON, np.uint8)
        self.barriers: dict[int, Barrier] = {}
        self.named: dict[int, set[Any]] = {}
        self.jobs: list[Job] = []
        self.reads: list[tuple[int, int, str]] = []  # ranges that work under way reads
        self.unfenced: dict[int, list[tuple[int, int]]] = {}  # by warps: written, not fenced
        self.cluster: list[Block] = [self]
        self.warps: list[Any] = []

    def later(self, run: Callable[[], None]) -> Job:
        """Work for some later time."""
        self.jobs.append(Job(run))
        return self.jobs[-1]

    def work(self, rng: random.Random) -> None:
        """Does some work."""
        self.finish(rng.choice(self.jobs))

    def finish(self, job: Job) -> None:
        """Does this work, unless it has been done."""
        if not job.done:
            self.jobs.remove(job)
            job.done = True
            job.run()

    def barrier(self, address: int) -> Barrier:
        """The mbarrier at an address of the cluster."""
        owner = self.of(address)
        if address not in owner.barriers:
            raise Fault(f"no mbarrier at {address:#x}")
        return owner.barriers[address]

    def of(self, address: int) -> Block:
        """The block whose memory an address is in."""
        rank = address >> RANK_BIT
        if rank >= len(self.cluster):
            raise Fault(f"an address of no block of the cluster: {address:#x}")
        return self.cluster[rank]

    def _places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        offsets = addresses.astype(np.int64) - self.base
        if offsets.min() < 0 or offsets.max() + size > self.shared.size:
            raise Fault(f"outside of shared memory: {offsets.min()} to {offsets.max() + size}")
        if (offsets % size).any():
            raise Fault("a misaligned address in shared memory")
        return offsets[:, None] + np.arange(size)

    def read(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Bytes [lanes, size] of threads."""
        return self.shared[self._places(addresses, size)]

    def write(self, addresses: np.ndarray, data: np.ndarray, warp: int) -> None:
        """Writes bytes [lanes, size] of threads."""
        places = self._places(addresses, data.shape[1])
        low, high = int(places.min()), int(places.max()) + 1
        self._expect_unread(low, high, "a thread")
        self.shared[places] = data
        self.unfenced.setdefault(warp, []).append((low, high))

    def fence(self, warp: int) -> None:
        """What a warp wrote may be read by copies and products now."""
        self.unfenced.pop(warp, None)

    def begin_read(self, low: int, high: int, who: str) -> tuple[int, int, str]:
        """A copy or product reads a range of offsets until `end_read`."""
        if low < 0 or high > self.shared.size:
            raise Fault(f"{who} reads outside of shared memory")
        for warp, ranges in self.unfenced.items():
            if any(first < high and low < last for first, last in ranges):
                raise Fault(f"{who} reads what warp {warp} wrote and has not fenced")
        self.reads.append((low, high, who))
        return self.reads[-1]

    def end_read(self, read: tuple[int, int, str]) -> None:
        """The range may be overwritten."""
        self.reads.remove(read)

    def _expect_unread(self, low: int, high: int, who: str) -> None:
        for first, last, reader in self.reads:
            if first < high and low < last:
                raise Fault(f"{who} writes shared memory that {reader} reads")

    def copy_in(self, box: TensorMap, at: list[int], address: int, barrier: int) -> None:
        """Asks for a box of an array, which lands later and is counted by a barrier."""
        elements, inside = _elements(box, at)
        offset, size = address - self.base, elements.size * box.width
        if offset % 128:
            raise Fault("a copy to an address that is no multiple of 128")
        if offset < 0 or offset + size > self.shared.size:
            raise Fault("a copy to outside of shared memory")
        self._expect_unread(offset, offset + size, "a copy")
        self.shared[offset : offset + size] = POISON
        self.barrier(barrier)

        def land() -> None:
            data = np.zeros((elements.size, box.width), np.uint8)
            first = elements[inside] * box.width
            data[inside] = self.memory.arrays[box.array][first[:, None] + np.arange(box.width)]
            self.shared[_swizzled(offset, elements.size, box)] = data
            self.barrier(barrier).complete(size)

        self.later(land)

    def copy_out(self, box: TensorMap, at: list[int], address: int, warp: Any) -> Job:
        """Writes a box of an array, later."""
        elements, inside = _elements(box, at)
        offset = address - self.base
        read = self.begin_read(offset, offset + elements.size * box.width, "a copy to the device")

        def land() -> None:
            data = self.shared[_swizzled(offset, elements.size, box)]
            first = elements[inside] * box.width
            array = self.memory.arrays[box.array]
            array[first[:, None] + np.arange(box.width)] = data[inside]
            self.end_read(read)

        return self.later(land)


def _elements(box: TensorMap, at: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where the elements of a box lie in their array, and which of them are in it."""
    if box.swizzle > 16 and box.box[-1] * box.width > box.swizzle:
        raise Fault("a box that is wider than its swizzle")
    grids = np.meshgrid(*map(np.arange, box.box), indexing="ij")
    place, inside = np.zeros(box.box, np.int64), np.ones(box.box, bool)
    for first, own, size, stride in zip(at[::-1], grids, box.sizes, box.strides, strict=True):
        index = own + first
        inside &= (index >= 0) & (index < size)
        place += index * stride
    return place.ravel(), inside.ravel()


def _swizzled(offset: int, count: int, box: TensorMap) -> np.ndarray:
    """Offsets of the bytes of a box in shared memory."""
    plain = offset + np.arange(count)[:, None] * box.width + np.arange(box.width)
    return swizzled(plain + BASE, box.swizzle) - BASE


def swizzled(addresses: np.ndarray, swizzle: int) -> np.ndarray:
    """Addresses with their bits from 4 on crossed with those from 7 on: two, four or eight rows."""
    return addresses ^ ((addresses >> 7) & (swizzle // 16 - 1)) << 4
