"""What a kernel for an NVIDIA GPU is made of: registers, spills, instructions of its main loop.

`ptxas` turns the PTX that Pallas writes into machine code, as the driver's compiler does, and
`nvdisasm` prints it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jentropy.errors import InputError

ARCHITECTURE = "sm_90a"
# Operations on the integer units, IMAD where it moves or shifts.
INTEGER = ("LOP3", "SHF", "PRMT", "IADD", "IADD3", "IMAD")
PRODUCT = "HGMMA"

_INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)([^;]*);(?:\s*/\* 0x\w+ \*/)?"
)
_CONTROL = re.compile(r"^\s+/\* 0x(\w+) \*/\s*$")
_LABEL = re.compile(r"^(\.L\S+):")
_TARGET = re.compile(r"`\((\.L\S+?)\)")
NO_BARRIER = 7  # in the fields of a control word


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction, and what its control word tells the scheduler.

    Attributes:
      name: of the operation.
      rest: modifiers and operands.
      guarded: it depends on a predicate.
      target: of a branch: the number of an instruction, if it is in this code.
      stall: cycles until the warp's next instruction may be issued.
      sets: the scoreboard barriers that it holds until it has read or written its operands.
      waits: bits of the scoreboard barriers that it waits for.
    """

    name: str
    rest: str
    guarded: bool
    target: int | None
    stall: int
    sets: tuple[int, ...]
    waits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One compiled kernel.

    Attributes:
      name: of the PTX file.
      registers: of a thread at launch.
      spill_bytes: stored to local memory.
      code: its instructions.
    """

    name: str
    registers: int
    spill_bytes: int
    code: tuple[Instruction, ...]

    def main_loop(self, products: int) -> tuple[int, int]:
        """Where the shortest loop that has so many products begins and ends in the code.

        Raises:
          InputError: there is none.
        """
        loops = {place: operations(self.code[slice(*place)]) for place in loops_of(self.code)}
        long = {place: loop for place, loop in loops.items() if loop[PRODUCT] >= products}
        if not long:
            raise InputError(
                f"code of {self.name}",
                expected=f"a loop with {products} {PRODUCT}",
                found=[loop[PRODUCT] for loop in loops.values()],
            )
        return min(long, key=lambda place: long[place].total())


def operations(code: Sequence[Instruction]) -> Counter[str]:
    """How often each operation stands in code."""
    return Counter(instruction.name for instruction in code)


def read(folder: Path) -> list[Kernel]:
    """Every kernel whose PTX lies in a folder."""
    return [_assemble(path) for path in sorted(folder.glob("*.ptx"))]


def _assemble(ptx: Path) -> Kernel:
    cubin = ptx.with_suffix(".cubin")
    report = _run("ptxas", "-v", f"-arch={ARCHITECTURE}", str(ptx), "-o", str(cubin)).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores", report)
    if registers is None or spills is None:
        raise InputError("report of ptxas", expected="registers and spills", found=report)
    return Kernel(
        name=ptx.stem,
        registers=int(registers[1]),
        spill_bytes=int(spills[1]),
        code=code_of(_run("nvdisasm", "-c", "-hex", str(cubin)).stdout.splitlines()),
    )


def code_of(lines: Sequence[str]) -> tuple[Instruction, ...]:
    """Instructions of a listing with the words of each on two lines."""
    labels: dict[str, int] = {}
    found: list[tuple[re.Match[str], int]] = []
    for line in lines:
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif instruction := _INSTRUCTION.match(line):
            found.append((instruction, 0))
        elif (control := _CONTROL.match(line)) and found:
            found[-1] = found[-1][0], int(control[1], 16) >> 41
    return tuple(_instruction(*one, labels) for one in found)


def _instruction(found: re.Match[str], control: int, labels: dict[str, int]) -> Instruction:
    """From the lowest bit on: stall of four, yield of one, two barriers of three, a mask of six."""
    target = _TARGET.search(found[3]) if found[2] == "BRA" else None
    barriers = control >> 5 & 7, control >> 8 & 7
    return Instruction(
        name=found[2],
        rest=found[3].strip(),
        guarded=found[1] is not None,
        target=labels.get(target[1]) if target else None,
        stall=control & 15,
        sets=tuple(b for b in barriers if b != NO_BARRIER),
        waits=control >> 11 & 63,
    )


def loops_of(code: Sequence[Instruction]) -> tuple[tuple[int, int], ...]:
    """Beginnings and ends of loops, the shortest first: up to the last branch back."""
    ends: dict[int, int] = {}
    for number, instruction in enumerate(code):
        if instruction.target is not None and instruction.target <= number:
            ends[instruction.target] = number + 1
    return tuple(sorted(ends.items(), key=lambda place: place[1] - place[0]))


def _run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(path_of(tool)), *arguments], capture_output=True, text=True, check=True
    )


def path_of(tool: str) -> Path | None:
    """A tool of the CUDA toolkit: from the wheels of extra `aot`, or on the path."""
    spec = importlib.util.find_spec("nvidia")
    folders = () if spec is None else spec.submodule_search_locations or ()
    places = [*(f"{folder}/cu13/bin" for folder in folders), os.environ.get("PATH", "")]
    program = shutil.which(tool, path=os.pathsep.join(places))
    return None if program is None else Path(program)
