"""WGMMA with matrix A in registers and B in shared memory, both of bfloat16.

Products of a warpgroup are done later, at the latest when it waits for them. Until then nobody may
touch their accumulators, or write their registers of A or what they read of shared memory, and none
may be given registers that were written since the last `wgmma.fence`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arithmetic import LANES, bf16_of, f32_of, halves, to_f32
from .block import BASE, RANK_BIT, Block, Job, swizzled
from .fault import Fault

SWIZZLES = {0: 16, 1: 128, 2: 64, 3: 32}  # by the highest bits of a descriptor


@dataclass(slots=True)
class Group:
    """Products of a warpgroup that are under way.

    Attributes:
      warps: of it.
      open: that are in no group yet.
      committed: groups, the oldest first.
      locked: registers by what a product does with them.
      held: registers of each product.
      met, turn: warps that came to an instruction of all four, and how many such there were.
    """

    warps: list[Any]
    open: list[Job] = field(default_factory=list)
    committed: list[list[Job]] = field(default_factory=list)
    locked: dict[str, str] = field(default_factory=dict)
    held: dict[int, list[str]] = field(default_factory=dict)
    met: dict[int, int] = field(default_factory=dict)
    turn: int = 0

    def commit(self) -> None:
        """Makes a group of what is open."""
        self.committed.append(self.open)
        self.open = []

    def wait(self, block: Block, left: int) -> None:
        """Waits until no more than so many groups are under way."""
        while len(self.committed) > left:
            for job in self.committed.pop(0):
                block.finish(job)
        under_way = [id(job) for group in [*self.committed, self.open] for job in group]
        self.held = {key: names for key, names in self.held.items() if key in under_way}
        kept = {name for names in self.held.values() for name in names}
        self.locked = {name: use for name, use in self.locked.items() if name in kept}


def names_of(text: str) -> list[str]:
    """Registers in braces."""
    return [name.strip() for name in text.strip("{}").split(",")]


def multiply(block: Block, group: Group, name: str, operands: tuple[str, ...]) -> None:
    """D += A B, asynchronously."""
    shape = re.search(r"m64n(\d+)k16\.f32\.bf16\.bf16", name)
    if shape is None:
        raise Fault(f"not known here: {name}")
    columns = int(shape[1])
    sums, a = names_of(operands[0]), names_of(operands[1])
    if len(a) != 4 or len(sums) != columns // 2:
        raise Fault("fragments of another size, or A in shared memory")
    flags = [int(np.asarray(group.warps[0].value(o)).flat[0]) for o in operands[3:]]
    if flags[1:3] != [1, 1] or flags[3:] != [0]:
        raise Fault(f"factors or transposition that are not known here: {operands[3:]}")
    for warp in group.warps:
        for register in (*sums, *a):
            if group.locked.get(register) != "accumulator":
                warp.expect_fenced(register)
    for register in a:
        if group.locked.get(register) == "accumulator":
            raise Fault(f"{register} is an accumulator, and A")
    descriptors = np.concatenate([np.atleast_1d(w.value(operands[2])) for w in group.warps])
    if (descriptors != descriptors[0]).any():
        raise Fault("threads have different descriptors")
    offsets = _of_b(int(descriptors[0]), columns)
    read = block.begin_read(int(offsets.min()), int(offsets.max()) + 2, "a product")
    accumulate = flags[0] != 0

    def run() -> None:
        left = _of_a([[w.registers[r] for r in a] for w in group.warps])
        codes = block.shared[offsets].astype(np.uint16)
        codes |= block.shared[offsets + 1].astype(np.uint16) << np.uint16(8)
        with np.errstate(all="ignore"):
            product = left @ bf16_of(codes).T
        for number, warp in enumerate(group.warps):
            for i, register in enumerate(sums):
                row = 16 * number + 8 * (i // 2 % 2) + LANES // 4
                column = 8 * (i // 4) + 2 * (LANES % 4) + i % 2
                more = product[row, column]
                if accumulate:
                    with np.errstate(all="ignore"):
                        more = f32_of(warp.registers[register]).astype(np.float64) + more
                warp.registers[register] = to_f32(more)
        block.end_read(read)

    job = block.later(run)
    if block.jobs[:-1]:  # products are done in order: the oldest first
        before = group.open or next((g for g in reversed(group.committed) if g), [])
        job.run = _after(block, before[-1:], run)
    group.open.append(job)
    group.held[id(job)] = [*sums, *a]
    group.locked |= dict.fromkeys(a, "A") | dict.fromkeys(sums, "accumulator")


def _after(block: Block, before: list[Job], run: Any) -> Any:
    def both() -> None:
        for job in before:
            block.finish(job)
        run()

    return both


def _of_a(registers: list[list[np.ndarray]]) -> np.ndarray:
    """The matrix [64, 16] that four registers of each warp hold."""
    matrix = np.zeros((64, 16))
    for warp, own in enumerate(registers):
        for i, lanes in enumerate(own):
            row, column = 16 * warp + 8 * (i % 2) + LANES // 4, 8 * (i // 2) + 2 * (LANES % 4)
            for half, codes in enumerate(halves(lanes)):
                matrix[row, column + half] = bf16_of(codes)
    return matrix


def _of_b(descriptor: int, columns: int) -> np.ndarray:
    """Offsets in shared memory of matrix B [columns, 16], each row's numbers next to each other."""
    start = (descriptor & 0x3FFF) << 4
    stride = (descriptor >> 32 & 0x3FFF) << 4
    swizzle = SWIZZLES[descriptor >> 62 & 3]
    if swizzle == 16 or descriptor >> 49 & 7:
        raise Fault("a matrix without swizzle, or with an offset of its base")
    column, k = np.meshgrid(np.arange(columns), np.arange(16), indexing="ij")
    plain = start + column // 8 * stride + column % 8 * swizzle + 2 * k
    return (swizzled(plain, swizzle) & ((1 << RANK_BIT) - 1)) - BASE
