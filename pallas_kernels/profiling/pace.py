"""How many cycles a step of a product takes on Hopper if memory were endlessly fast: a model.

A scheduler has a warp of every warpgroup that multiplies. Each issues one instruction after the
other, once the stall of the one before is over and the scoreboard barriers are free that it waits
for; the scheduler issues one in a cycle, whichever warp's is ready, and units are busy for some
cycles with each. Branches back inside of a step are taken as often as there are escapes.

    issue    instructions that the scheduler issues for a step, of all warps
    cycles   of a step, what is exposed of latencies included
    share    of the cycles in which memory moves the step's weights

Latencies and rates are of Hopper as published measurements have them (arXiv 2402.13499), rounded.
What kernels take to begin and end is in `seconds`; `benchmarks/notes.md` says how well it all tells
what an H200 did.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jentropy.pallas_kernels.hopper.plan import (
    PARTS_SECONDS,
    HopperPlan,
    stage_bytes,
    step_bytes,
)
from jentropy.pallas_kernels.targets import Gpu

from .sass import PRODUCT, Instruction

WARPS = 2  # of a scheduler that multiply
STEPS, FIRST = 6, 2  # that are played, and from which on they count
ESCAPES = 1  # of a list: rounds of a loop within a step
BRANCH_CYCLES = 8  # of one that is taken
PRODUCT_WAIT = "DEPBAR"
# Cycles from issue until the result is there, where a scoreboard or the next instruction waits.
LATENCY = {"LDS": 30, "LDC": 30, "LDG": 500, "LD": 500, "SYNCS": 24, "S2R": 20, "S2UR": 20}
LATENCY |= {"R2UR": 12, "BAR": 24, "MEMBAR": 24, "FENCE": 12, "SHFL": 24, "STS": 20, "MUFU": 20}
LATENCY |= {"I2F": 18, "F2I": 18, "F2F": 18, "REDUX": 20, "VOTEU": 12, "I2FP": 6}
OTHER_LATENCY = 20
BLOCKING = ("BAR", "MEMBAR", "FENCE")  # nothing of the warp goes on before they are through
# Cycles that a unit of a scheduler is busy with an instruction of a warp.
BUSY = {"alu": 2, "fma": 2, "half": 1, "memory": 4, "other": 1}
UNITS = dict.fromkeys(("LOP3", "SHF", "PRMT", "IADD3", "ISETP", "SEL", "LEA", "MOV"), "alu")
UNITS |= dict.fromkeys(("VIADD", "IMNMX", "PLOP3", "LOP", "SGXT", "I2FP", "FSETP"), "alu")
UNITS |= dict.fromkeys(("IMAD", "FFMA", "FMUL", "FADD"), "fma")
UNITS |= dict.fromkeys(("HMUL2", "HFMA2", "HADD2"), "half")
UNITS |= dict.fromkeys(("LDS", "STS", "LDG", "STG", "LD", "ST"), "memory")
LEAST_PRODUCT, PRODUCT_LATENCY = 16, 30  # cycles of the tensor core, and until a sum is there
MACS = 512  # of a tensor core in a cycle


# Of an H200: what a kernel takes to begin and to end, and what lies between two of a program.
KERNEL_SECONDS, BETWEEN_SECONDS = 4.8e-6, 3.0e-6
CLOCK_HZ = 1.98e9


@dataclass(frozen=True, slots=True)
class Pace:
    """Cycles of a scheduler for a step: that it issues in, and all."""

    issue: float
    cycles: float


def memory_cycles(plan: HopperPlan, target: Gpu) -> float:
    """In which memory moves a step's weights to a multiprocessor."""
    step = step_bytes(plan.config, plan.traits)
    return step * target.multiprocessors / target.bytes_per_second * CLOCK_HZ


def seconds(
    plan: HopperPlan, pace: Pace, target: Gpu, longest: int | None = None
) -> dict[str, float]:
    """What a product takes: its loop, what a kernel takes beside that, and adding parts.

    Args:
      longest: steps of the block of threads that has the most, if not the plan's.
    """
    moved = stage_bytes(plan.m, plan.config, plan.traits) * target.multiprocessors
    cycles = max(pace.cycles, memory_cycles(plan, target))
    step = max(cycles / CLOCK_HZ, moved / target.cache_bytes_per_second)
    steps = plan.longest if longest is None else longest
    times = {"loop": steps * step, "launch": KERNEL_SECONDS + BETWEEN_SECONDS}
    if plan.parts > 1 or longest is not None:
        times["sum"] = PARTS_SECONDS
    return times


@dataclass(slots=True)
class _Warp:
    """Where a warp is."""

    path: Iterator[tuple[Instruction, int, bool]]
    at: tuple[Instruction, int, bool] | None = None
    free: float = 0.0  # when its next instruction may be issued
    barriers: dict[int, float] = field(default_factory=dict)  # when scoreboards are free
    products: list[float] = field(default_factory=list)  # when groups of products are done
    last_product: float = 0.0
    steps: list[float] = field(default_factory=list)  # when each began


def pace_of(code: Sequence[Instruction], loop: tuple[int, int]) -> Pace:
    """Of a step, which is a round of a loop.

    Args:
      code: of a kernel.
      loop: where it begins and ends, as of `Kernel.main_loop`.
    """
    warps = [_Warp(_path(code, *loop), free=40.0 * i) for i in range(WARPS)]
    for warp in warps:
        warp.at = next(warp.path, None)
    units: dict[str, float] = {}
    now, issued = 0.0, 0
    while left := [w for w in warps if w.at is not None]:
        ready = {id(w): _ready(w, units) for w in left}
        warp = min(left, key=lambda w: (max(now, ready[id(w)]), w.free))  # the one that waited
        now = max(now, ready[id(warp)])
        _issue(warp, now, units)
        issued += 1
        now += 1
        warp.at = next(warp.path, None)
    rounds = [(w.steps[-1] - w.steps[FIRST]) / (len(w.steps) - 1 - FIRST) for w in warps]
    return Pace(issued / STEPS, max(rounds))


def _path(
    code: Sequence[Instruction], start: int, stop: int
) -> Iterator[tuple[Instruction, int, bool]]:
    """Instructions of rounds, with the round, and whether a branch is taken."""
    for step in range(STEPS):
        turns: dict[int, int] = {}
        i = start
        while i < stop:
            one = code[i]
            target = -1 if one.target is None else one.target
            inside = start <= target < stop
            if inside and target <= i and i != stop - 1:
                turns[i] = turns.get(i, 0) + 1
                taken = turns[i] < ESCAPES
            else:
                taken = inside and not one.guarded
            yield one, step, taken
            i = one.target if taken and one.target is not None else i + 1


def _ready(warp: _Warp, units: dict[str, float]) -> float:
    """When a warp's next instruction can be issued."""
    assert warp.at is not None
    one = warp.at[0]
    when = max(warp.free, units.get(_unit(one), 0.0))
    for barrier, free in warp.barriers.items():
        if one.waits >> barrier & 1:
            when = max(when, free)
    if PRODUCT_WAIT in one.rest:
        left = int(re.findall(r"0x([0-9a-f]+)", one.rest)[-1], 16)
        under_way = warp.products[: len(warp.products) - left]
        when = max([when, *under_way])
    return when


def _issue(warp: _Warp, now: float, units: dict[str, float]) -> None:
    assert warp.at is not None
    one, step, taken = warp.at
    if step == len(warp.steps):
        warp.steps.append(now)
    busy: float = BUSY.get(_unit(one), 1)
    latency = LATENCY.get(one.name, OTHER_LATENCY)
    if one.name == PRODUCT:
        busy = _product_cycles(one)
        done = max(now + busy + PRODUCT_LATENCY, warp.last_product + busy)
        warp.last_product = done
        if "gsb0" in one.rest:
            warp.products.append(done)
    elif _unit(one) == "memory" and ".128" in one.rest:
        busy *= 4
    units[_unit(one)] = now + busy
    for barrier in one.sets:
        warp.barriers[barrier] = now + latency
    next_one = now + max(1, one.stall)
    if one.name in BLOCKING:
        next_one = max(next_one, now + latency)
    if taken:
        next_one = max(next_one, now + BRANCH_CYCLES)
    warp.free = next_one


def _unit(one: Instruction) -> str:
    return PRODUCT if one.name == PRODUCT else UNITS.get(one.name, "other")


def _product_cycles(one: Instruction) -> float:
    """That a tensor core multiplies for: the 16 rows of a warp."""
    shape = re.search(r"64x(\d+)x16", one.rest)
    assert shape, one
    return max(LEAST_PRODUCT, 16 * int(shape[1]) * 16 / MACS)
