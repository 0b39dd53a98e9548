"""Registers of 32 threads, and where each of them is in the program.

Threads that part at a branch go on with those that are furthest behind until they meet again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from .arithmetic import LANES
from .block import Block
from .fault import Fault
from .global_memory import Seen
from .ptx import Program
from .tensor_cores import Group

PARAMETERS, PARAMETER_BITS = 1 << 40, 16  # addresses of the kernel's parameters
ALL = np.ones(32, bool)


class Warp:
    """State of a warp."""

    def __init__(self, program: Program, block: Block, number: int, sizes: Any) -> None:
        self.program, self.block, self.number = program, block, number
        self.registers: dict[str, np.ndarray] = {}
        self.written: dict[str, int] = {}  # when, in instructions
        self.clock = self.fenced = 0
        self.pc = 0
        self.places: np.ndarray | None = None  # of threads that have parted
        self.active = ALL
        self.held = ~ALL  # threads that wait for others of the warp
        self.waiting: Callable[[], bool] | None = None
        self.done = False
        self.seen = Seen()
        self.may_touch = not program.overlaps
        self.copies: list[Any] = []
        self.groups: list[list[Any]] = []  # of copies to the device
        self.group: Group
        self.at_cluster: set[Any] = set()
        self.special = _special(block, number, sizes)

    @property
    def who(self) -> tuple[Any, int]:
        """As a writer of the device's memory."""
        return self.block.place, self.number

    def value(self, text: str) -> Any:
        """Lanes of an operand."""
        if text[0] == "%":
            if text in self.special:
                return self.special[text]
            if text not in self.registers:
                raise Fault(f"{text} was never written")
            if self.group.locked.get(text) == "accumulator":
                raise Fault(f"{text} is an accumulator of a product under way")
            return self.registers[text]
        if text in self.registers:  # of a piece of assembly
            return self.registers[text]
        if (constant := _constant(text)) is not None:
            return constant
        if "_param_" in text:
            number = int(text.rpartition("_")[2])
            return np.full(32, PARAMETERS + (number << PARAMETER_BITS), np.uint64)
        if text in self.block.memory.variables:
            return np.full(32, self.block.memory.variables[text], np.uint64)
        if text.startswith("__dynamic_shmem"):
            return np.full(32, self.block.base, np.uint64)
        raise Fault(f"an operand that is not known here: {text}")

    def address(self, text: str) -> np.ndarray:
        """Lanes of an address in brackets."""
        inner = text.strip("[] ")
        base, plus, offset = inner.partition("+")
        if plus and not offset.lstrip("-").isdigit():
            raise Fault(f"an address that is not known here: {text}")
        lanes = np.asarray(self.value(base)).astype(np.int64)
        return lanes + int(offset or 0)

    def write(self, name: str, lanes: Any, mask: np.ndarray) -> None:
        """Writes the lanes of a mask."""
        if name == "_":
            return
        if name in self.group.locked:
            raise Fault(
                f"{name} is written; a product under way has it as {self.group.locked[name]}"
            )
        dtype = self.program.dtypes[name.rstrip("0123456789")]
        lanes = np.asarray(lanes)
        if lanes.dtype != dtype:
            lanes = lanes.astype(dtype)
        if mask is not ALL:
            old = self.registers.get(name, np.zeros(32, dtype))
            lanes = np.where(mask, lanes, old)
        elif lanes.ndim == 0:
            lanes = np.full(32, lanes)
        self.registers[name] = lanes
        self.written[name] = self.clock

    def expect_fenced(self, register: str) -> None:
        """A product may take a register."""
        if self.written.get(register, 0) > self.fenced:
            raise Fault(f"{register} was written after the last wgmma.fence")

    def expect_allowed(self) -> None:
        """It may touch arrays: earlier kernels have ended, if they need not have."""
        if not self.may_touch:
            raise Fault("arrays are touched before griddepcontrol.wait")

    def mask(self, guard: tuple[str, bool] | None) -> np.ndarray:
        """Threads that run an instruction."""
        if guard is None:
            return self.active
        name, negated = guard
        lanes = np.asarray(self.value(name)).astype(bool)
        return (~lanes if negated else lanes) & self.active

    def expect_together(self, what: object) -> None:
        """All threads are here."""
        if self.places is not None:
            raise Fault(f"threads of a warp have parted at {what}")

    def branch(self, target: int, taken: np.ndarray) -> None:
        """Goes on elsewhere, with the threads of a mask; `pc` is the next instruction."""
        if self.places is None:
            if taken.all():
                self.pc = target
                return
            if not taken.any():
                return
            self.places = np.full(32, self.pc)
        self.places[self.active] = self.pc
        self.places[taken] = target
        self.meet()

    def step_over(self) -> None:
        """After an instruction of threads that have parted."""
        if self.places is not None:
            self.places[self.active] = self.pc
            self.meet()

    def hold(self) -> None:
        """The threads that run go on when all of the warp have come here."""
        if self.places is not None:
            self.held = self.held | self.active

    def meet(self) -> None:
        """Goes on with the threads that are furthest behind, and that are not held."""
        assert self.places is not None
        if self.held.all():
            if (self.places != self.places[0]).any():
                raise Fault("threads of a warp wait for each other in different places")
            self.held = ~ALL
        self.pc = int(self.places[~self.held].min())
        self.active = (self.places == self.pc) & ~self.held
        if self.active.all():
            self.places, self.active = None, ALL

    def ready(self) -> bool:
        """Whether it can go on."""
        if self.waiting is not None and self.waiting():
            self.waiting = None
        return not self.done and self.waiting is None


@cache
def _constant(text: str) -> np.ndarray | None:
    """Lanes of a number."""
    if text.startswith(("0f", "0x")):
        return np.full(32, int(text[2:], 16), np.uint64)
    if text.lstrip("-").isdigit():
        return np.full(32, int(text) & (1 << 64) - 1, np.uint64)
    return None


def _special(block: Block, number: int, sizes: Any) -> dict[str, np.ndarray]:
    """Registers that are given."""
    numbers = {
        "%laneid": LANES,
        "%tid.x": number * 32 + LANES,
        "%warpid": number,
        "%cluster_ctarank": block.rank,
        "%globaltimer": 0,
    }
    for axis, i in zip("xyz", block.place, strict=True):
        numbers[f"%ctaid.{axis}"] = i
    for axis, size, width in zip("xyz", sizes.grid, sizes.cluster, strict=True):
        numbers[f"%nctaid.{axis}"] = size
        numbers[f"%cluster_nctaid.{axis}"] = width
    numbers["%tid.y"] = numbers["%tid.z"] = 0
    numbers["%ntid.x"] = sizes.threads
    return {name: np.broadcast_to(np.uint32(i), 32) for name, i in numbers.items()}
