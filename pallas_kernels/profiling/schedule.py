"""Reads what libtpu scheduled for a kernel: the bundles of one step of its grid.

A bundle is one instruction word, one cycle. Where a result is not there yet, or the MXU takes no
more, the scheduler leaves bundles empty; `packed-bundles-post-ra` has them, `final_bundles` has
none, since the hardware waits by itself. Both are counted. Waits for copies are in neither, which
makes them a lower bound of time; they hold as a budget since compiling again gives the same.

The dump of a kernel is a line for each bundle:

    0x158 PF: > { %1474 = sbr.rel (%p8) target = $region113  ;; ... } /* Start region 112 */

with marks (LB: body of a loop, PF: where a skipped region ends), operations, and comments that say
where regions of the program start and end; before the last passes branches go to `bundleno = 89
(0x59), region = 113`. A branch back to the start of region r, at a mark LB, ends a loop; any other
one skips to the bundle whose comment is `Start/End empty region r`. Some bundles after a branch run
whether it is taken or not. The grid is the longest loop.

`pl.when(k == 0)` and `pl.when(k == last)` are branches on `scmp.ne` with 0 or the number of the
last step: one step of a column of tiles runs what they skip. A condition for which predicates did
not suffice, saved as 1 or 0 and compared with 0, is no such branch by that.

Blocks that XLA keeps on the chip are copied by loads and stores, in pieces that nothing else is in
and that are skipped by a branch while the block stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jentropy.errors import InputError

FILES = (
    "final_bundles",
    "packed-bundles-post-ra",
    "final_hlo-static-per-bundle-utilization",
)
SLOTS = ("MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU")
LINE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+([A-Z ]*?)\s*:[\s>]*\{(.*)")
BRANCH = re.compile(
    r"sbr\.rel \((!?)(%p\w+)\) target (?:bundleno = \d+ \(\w+\), region )?= (?:\$region)?(\d+)"
)
COMPARED = re.compile(r"(%p\w+) = scmp\.(ne|ge)\.\S* (%\w+), (\d+)\b")
STORED = re.compile(r"sst \[smem:\[(#\w+_spill)\]\] (%s\w+)")
LOADED = re.compile(r"(%s\w+) = sld \[smem:\[(#\w+_spill)\]\]")
SAVED = re.compile(r"(%s\w+) = scalar_select \S*?(%p\w+), \S*?1, \S*?0\b")
STARTED = re.compile(r"Start region (\d+)\b")
LANDING = re.compile(r"Start/End empty region (\d+)\b")
USAGE = re.compile(r"^\d+( \d+)+\s*$")
VECTOR = re.compile(r"= (v\w+)")
MOVES = {"vld", "vst", "vsyncadd", "vsyncpa"}
UNITS = re.compile(r"^[A-Z:]+(, [A-Z:]+)+\s*$")
# What a dump calls a unit; from libtpu 0.0.52 on the MXU's pushes of weights are counted apart.
UNIT_NAMES = {"MATMUL": "MXU", "VLOAD:FILL": "FILL", "VSTORE:SPILL": "SPILL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One step of a kernel's grid.

    Attributes:
      bundles: of a step, loops times their trips; blocks that only the first or the last of the
        steps along K runs count once for all of them.
      cycles: the same, with the empty bundles in which the MXU is waited for.
      upper: the same, such blocks counted in every step.
      hot: the longest piece without a branch, and loops: arithmetic only, neither copies nor
        conditions.
      slots: operations of a step by the unit that they occupy, weighted as `bundles`; FILL and
        SPILL move registers from and to memory.
      loops: trips and bundles of each inner loop; trips that the program computes are those given.
    """

    bundles: float
    cycles: float
    upper: float
    hot: float
    slots: dict[str, float]
    loops: tuple[tuple[float, int], ...]

    @property
    def spills(self) -> float:
        """Registers stored since there are too few of them."""
        return self.slots["SPILL"]


@dataclass(frozen=True, slots=True)
class _Bundle:
    marks: str
    text: str


@dataclass(frozen=True, slots=True)
class _Loop:
    """Bundles first .. last."""

    first: int
    last: int
    trips: float

    def __contains__(self, index: int) -> bool:
        return self.first <= index <= self.last

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class _Step:
    """Bundles of a kernel, its loops, and how often a step runs each: in any case, and spread."""

    bundles: list[_Bundle]
    grid: _Loop
    inner: list[_Loop]
    every: dict[int, float]
    times: dict[int, float]


def read(dump: Path, kernel: str, *, steps: int, trips: float = 0, copied: float = 1) -> Schedule:
    """The schedule of a kernel of the compile that wrote a dump.

    Args:
      dump: folder of one compile's files.
      kernel: name of the `pallas_call`.
      steps: of its grid along K, at least 2.
      trips: of loops whose trips the program computes.
      copied: steps of which one copies blocks from one place on the chip to another.

    Raises:
      InputError: the dump has no such kernel, or it is not as described above.
    """
    final, scheduled, usage = (_file(dump, kernel, name) for name in FILES)
    step = _step(final, steps, trips, copied)
    rows = _used(usage)
    if len(rows) < len(step.bundles):
        raise InputError(
            f"schedule of {kernel}",
            file=usage,
            expected=f"the slots of {len(step.bundles)} bundles",
            found=f"of {len(rows)}",
        )
    looped = [(loop.trips, len(loop)) for loop in step.inner]
    return Schedule(
        bundles=sum(step.times.values()),
        cycles=sum(_step(scheduled, steps, trips, copied).times.values()),
        upper=sum(step.every.values()),
        hot=max(_straight(step)) + sum(count * size for count, size in looped),
        slots={name: sum(n * rows[i][name] for i, n in step.times.items()) for name in SLOTS},
        loops=tuple(looped),
    )


def _file(dump: Path, kernel: str, name: str) -> Path:
    """One of the files of a kernel."""
    found = [
        path
        for path in sorted(dump.glob(f"*-{kernel}*-{name}.txt"))
        if "schedule-analysis" not in path.name
    ]
    if len(found) != 1:
        raise InputError(
            f"schedules of {kernel}",
            file=dump,
            expected=f"one {name}.txt",
            found=[path.name for path in found] or "none",
        )
    return found[0]


def _step(path: Path, steps: int, trips: float, copied: float) -> _Step:
    """How often a step runs each bundle of a file."""
    lines = map(LINE.match, path.read_text().splitlines())
    bundles = [_Bundle(*match.groups()) for match in lines if match]
    loops = _loops(bundles, trips)
    if not loops:
        raise InputError(
            "a schedule", file=path, expected="a loop", found=f"{len(bundles)} bundles"
        )
    grid = max(loops, key=len)
    inner = [loop for loop in loops if loop is not grid and loop.first in grid]
    once, moved = _once(bundles, steps), _copies(bundles) if copied > 1 else set()
    every = {
        i: math.prod(loop.trips for loop in inner if i in loop)
        for i in range(grid.first, grid.last + 1)
    }
    times = {
        i: count / (copied if i in moved else steps if i in once else 1)
        for i, count in every.items()
    }
    return _Step(bundles, grid, inner, every, times)


def _used(usage: Path) -> list[dict[str, int]]:
    """Operations of each bundle by the unit that they occupy.

    A line names the units, those of SLOTS if there is none; others than SLOTS are left out.
    """
    names, rows = list(SLOTS), []
    for line in usage.read_text().splitlines():
        if UNITS.match(line):
            names = [UNIT_NAMES.get(name, name) for name in line.strip().split(", ")]
        elif USAGE.match(line):
            rows.append(line.split())
    if not set(SLOTS) <= set(names) or any(len(row) != len(names) for row in rows):
        raise InputError(
            "use of slots",
            file=usage,
            expected=", ".join(SLOTS),
            found=f"{', '.join(names)} in rows of {sorted({len(row) for row in rows})}",
            hint="jentropy reads the dumps of libtpu 0.0.42 to 0.0.52; install one of them",
        )
    return [{name: int(row[names.index(name)]) for name in SLOTS} for row in rows]


def _loops(bundles: list[_Bundle], trips: float) -> list[_Loop]:
    delay = _delay(bundles)
    started = {
        region: i
        for i, bundle in enumerate(bundles)
        if "LB" in bundle.marks
        for region in STARTED.findall(bundle.text)
    }
    ends = {m.group(1): float(m.group(4)) for b in bundles for m in COMPARED.finditer(b.text)}
    return [
        _Loop(started[branch.group(3)], i + delay, ends.get(branch.group(2), trips))
        for i, branch in _branches(bundles)
        if started.get(branch.group(3), i + 1) <= i
    ]


def _branches(bundles: list[_Bundle]) -> Iterator[tuple[int, re.Match[str]]]:
    """Where branches are, and what they say."""
    for i, bundle in enumerate(bundles):
        if branch := BRANCH.search(bundle.text):
            yield i, branch


def _delay(bundles: list[_Bundle]) -> int:
    """Bundles after a branch that run in any case: from the last branch to the end of its block."""
    branches = [i for i, bundle in enumerate(bundles) if "sbr.rel" in bundle.text]
    last = branches[-1] if branches else len(bundles)
    ends = (i for i in range(last, len(bundles)) if "End region" in bundles[i].text)
    return next(ends, last) - last


def _once(bundles: list[_Bundle], steps: int) -> set[int]:
    """Bundles that only the first or the last step along K runs."""
    delay, differs = _delay(bundles), _differs(bundles)
    landing = {region: i for i, b in enumerate(bundles) for region in LANDING.findall(b.text)}
    return {
        skipped
        for i, branch in _branches(bundles)
        if not branch.group(1) and differs.get(branch.group(2)) in (0, steps - 1)
        for skipped in range(i + 1 + delay, landing.get(branch.group(3), 0))
    }


def _copies(bundles: list[_Bundle]) -> set[int]:
    """Bundles of pieces that a branch skips and that load and store only."""
    landing = {region: i for i, b in enumerate(bundles) for region in LANDING.findall(b.text)}
    found: set[int] = set()
    for i, branch in _branches(bundles):
        rest = range(i, landing.get(branch.group(3), 0))
        block = next((at for at in rest if "End region" in bundles[at].text), i)
        skipped = range(block + 1, rest.stop)
        units = {unit for at in skipped for unit in VECTOR.findall(bundles[at].text)}
        found |= set(skipped) if {"vld", "vst"} <= units <= MOVES else set()
    return found


def _differs(bundles: list[_Bundle]) -> dict[str, int]:
    """Predicates that a number in a register is not the one that is stated."""
    text = "\n".join(bundle.text for bundle in bundles)
    stored = dict(STORED.findall(text))
    loaded = {name: stored.get(place) for name, place in LOADED.findall(text)}
    saved = dict(SAVED.findall(text))
    compared = {
        predicate: (loaded.get(register, register), int(number))
        for predicate, kind, register, number in COMPARED.findall(text)
        if kind == "ne"
    }
    direct = {p: number for p, (register, number) in compared.items() if register not in saved}
    return direct | {
        predicate: direct[saved[register]]
        for predicate, (register, _) in compared.items()
        if saved.get(register) in direct
    }


def _straight(step: _Step) -> Iterator[int]:
    """Lengths of the pieces of a step, loops apart, without a branch or a place to branch to."""
    length = 0
    for i in step.every:
        looped = any(i in loop for loop in step.inner)
        if looped or step.bundles[i].marks or "sbr.rel" in step.bundles[i - 1].text:
            yield length
            length = 0
        length += not looped
    yield length
