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

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)(.*)$")
_LABEL = re.compile(r"^(\.L\S+):")
_TARGET = re.compile(r"`\((\.L\S+?)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One compiled kernel.

    Attributes:
      name: of the PTX file.
      registers: of a thread at launch.
      spill_bytes: stored to local memory.
      loops: how often each operation stands in each loop, the innermost first.
    """

    name: str
    registers: int
    spill_bytes: int
    loops: tuple[Counter[str], ...]

    def main_loop(self, products: int) -> Counter[str]:
        """The shortest loop that has so many products.

        Raises:
          InputError: there is none.
        """
        loops = [loop for loop in self.loops if loop[PRODUCT] >= products]
        if not loops:
            raise InputError(
                f"code of {self.name}",
                expected=f"a loop with {products} {PRODUCT}",
                found=[loop[PRODUCT] for loop in self.loops],
            )
        return min(loops, key=Counter.total)


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
        loops=loops_of(_run("nvdisasm", "-c", str(cubin)).stdout.splitlines()),
    )


def loops_of(lines: Sequence[str]) -> tuple[Counter[str], ...]:
    """Operations between each label and the last branch back to it."""
    labels: dict[str, int] = {}
    operations: list[str] = []
    ends: dict[int, int] = {}
    for line in lines:
        if label := _LABEL.match(line):
            labels[label[1]] = len(operations)
        elif instruction := _INSTRUCTION.match(line):
            operations.append(instruction[1])
            target = _TARGET.search(instruction[2])
            if instruction[1] == "BRA" and target and target[1] in labels:
                ends[labels[target[1]]] = len(operations)
    loops = (Counter(operations[start:end]) for start, end in ends.items())
    return tuple(sorted(loops, key=Counter.total))


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
