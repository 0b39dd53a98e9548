"""All blocks of a grid at once: at a time a few instructions of some warp, or work that waits.

Machine(ptx, host).run([x, weights, result])
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import compute
from .block import Block
from .fault import Fault
from .global_memory import GlobalMemory
from .host import launch_of
from .instructions import INSTRUCTIONS
from .ptx import Instruction, parse
from .tensor_cores import Group
from .warp import Warp

EAGER = (0.0, 0.3)  # how often work is done that nobody waits for, run by run
LONGEST = 80  # instructions that a warp is ahead of others at a time


class Machine:
    """A kernel that was compiled.

    Args:
      ptx: its text.
      host: the text of the LLVM module that launches it.
    """

    def __init__(self, ptx: str, host: str) -> None:
        self.program, self.launch = parse(ptx), launch_of(host)
        self.code = [self._prepared(code) for code in self.program.instructions]

    def run(self, arrays: list[np.ndarray], seed: int = 0) -> dict[str, int]:
        """Runs it on operands and results, which are bytes; in an order that a seed gives.

        Raises:
          Fault: what a chip might not forgive.
        """
        rng = random.Random(seed)
        memory = GlobalMemory(arrays, self.program.variables)
        memory.launch_parameters = self.launch.parameters
        eager = rng.choice(EAGER)
        left = warps = [w for block in self._blocks(memory) for w in block.warps]
        steps = 0
        while left:
            ready = [w for w in left if w.ready()]
            busy = [b for b in {id(w.block): w.block for w in warps}.values() if b.jobs]
            if busy and (not ready or rng.random() < eager):
                rng.choice(busy).work(rng)
                continue
            if not ready:
                where = {f"warp {w.number}": str(self.program.instructions[w.pc - 1]) for w in left}
                raise Fault(f"nobody can go on: {where}")
            warp = rng.choice(ready)
            for _ in range(rng.randint(1, LONGEST)):
                self._step(warp)
                steps += 1
                if not warp.ready():
                    break
            if warp.done:
                left = [w for w in left if not w.done]
        for warp in warps:
            if any(b.bytes_left for b in warp.block.barriers.values()):
                raise Fault("a block of threads ended while copies were under way")
        for number, array in enumerate(memory.arrays[len(arrays) :]):
            if array.any():
                raise Fault(f"variable {number} is not as it was at the beginning")
        return {"instructions": steps, "fences": memory.fences}

    def _blocks(self, memory: GlobalMemory) -> list[Block]:
        """Blocks of the grid, those of a cluster knowing each other."""
        clusters: dict[Any, list[Block]] = {}
        sizes = self.launch
        for place in itertools.product(*map(range, reversed(sizes.grid))):
            place = place[::-1]
            members = clusters.setdefault(
                tuple(i // size for i, size in zip(place, sizes.cluster, strict=True)), []
            )
            block = Block(place, len(members), sizes.shared_bytes, memory)
            members.append(block)
            block.cluster = members
            block.warps = [Warp(self.program, block, i, sizes) for i in range(sizes.threads // 32)]
            for i in range(0, len(block.warps), 4):
                group = Group(block.warps[i : i + 4])
                for warp in group.warps:
                    warp.group = group
        return [block for members in clusters.values() for block in members]

    def _step(self, warp: Warp) -> None:
        run = self.code[warp.pc]
        warp.pc += 1
        warp.clock += 1
        run(warp)

    def _prepared(self, code: Instruction) -> Callable[[Warp], None]:
        """A function that runs an instruction."""
        first = code.parts[0]
        if first in ("ret", "exit"):

            def end(warp: Warp) -> None:
                warp.expect_together(code)
                warp.done = True

            return end
        if first == "bra":
            target = self.program.labels[code.operands[0]]
            return lambda warp: warp.branch(target, warp.mask(code.guard))
        special = INSTRUCTIONS.get(first)
        if special is not None:

            def act(warp: Warp) -> None:
                mask = warp.mask(code.guard)
                if mask.any():
                    special(warp, code, mask)
                warp.step_over()

            return act
        function = compute(code.name)
        if function is None:
            raise Fault(f"not known here: {code}")
        target, *sources = code.operands

        def calculate(warp: Warp) -> None:
            mask = warp.mask(code.guard)
            if code.guard is None or mask.any():
                warp.write(target, function(*map(warp.value, sources)), mask)
            warp.step_over()

        return calculate
