"""Instructions, labels and variables of a kernel's text."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

DTYPES = {".pred": np.bool_, ".b16": np.uint16, ".b32": np.uint32, ".b64": np.uint64}
DTYPES |= {".f32": np.uint32, ".f64": np.uint64}
_SKIPPED = (
    ".loc",
    ".shared",
    ".section",
    ".file",
    ".pragma",
    ".reg",
    "{",
    "}",
    "//",
    ".max",
    ".min",
)
_SPIN = re.compile(  # a wait: tried until it is over
    r"LAB_WAIT:.*?mbarrier\.try_wait\.(\S+)\s+P1, (.*?);.*?DONE:", re.S
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One line.

    Attributes:
      name: the operation with its modifiers.
      guard: the predicate under which it runs, and whether that is negated; or none.
      operands: as they are written.
    """

    name: str
    guard: tuple[str, bool] | None
    operands: tuple[str, ...]

    @property
    def parts(self) -> list[str]:
        """The operation and its modifiers."""
        return self.name.split(".")

    def __str__(self) -> str:
        return f"{self.name} {', '.join(self.operands)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A kernel.

    Attributes:
      name: of its entry.
      instructions: in order.
      labels: where they point to.
      dtypes: of registers, by the letters of their names.
      overlaps: it may begin before earlier kernels have ended.
      variables: bytes of variables in global memory, which begin as zeros.
    """

    name: str
    instructions: list[Instruction]
    labels: dict[str, int]
    dtypes: dict[str, type]
    overlaps: bool
    variables: dict[str, int]


def parse(text: str) -> Program:
    """Reads the text of a module with one kernel."""
    entry = re.search(r"\.entry (\w+)\(.*?\)\s*\n.*?\n?\{(.*)\n\}", text, re.S)
    assert entry, "no kernel"
    name, body = entry.groups()
    head = text[: entry.start()]
    variables = {
        found[2]: int(found[3]) * DTYPES_BYTES[found[1]]
        for found in re.finditer(r"\.global.*?\.([bu]\d+) (\w+)(?:\[(\d+)\])", head)
    }
    dtypes = {
        letters: DTYPES[kind]
        for kind, letters in re.findall(r"\.reg (\.\w+)\s+(%?\w+?)\d*\s*[<;]", body)
    }
    body = _SPIN.sub(r"mbarrier.wait.\1 \2;", re.sub(r"^\s*\.loc .*$", "", body, flags=re.M))
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for raw in re.split(r"[;\n]", re.sub(r"//.*", "", body)):
        line = raw.strip()
        if line.startswith("{ "):
            line = line[2:].strip()
        if label := re.fullmatch(r"(\$?\w+):", line):
            labels[label[1]] = len(instructions)
        elif line and not line.startswith(_SKIPPED):
            instructions.append(_instruction(line))
    return Program(
        name=name,
        instructions=instructions,
        labels=labels,
        dtypes=dtypes,
        overlaps="griddepcontrol.wait" in body,
        variables=variables,
    )


DTYPES_BYTES = {"b8": 1, "u8": 1, "b16": 2, "b32": 4, "u32": 4, "b64": 8, "u64": 8}


def _instruction(line: str) -> Instruction:
    guard = None
    if guarded := re.fullmatch(r"@(!?)(%?\w+)\s+(.*)", line, re.S):
        guard, line = (guarded[2], guarded[1] == "!"), guarded[3]
    name, _, rest = line.replace("\t", " ").partition(" ")
    operands, depth, current = [], 0, ""
    for character in rest.strip():
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            operands.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        operands.append(current.strip())
    return Instruction(name=name, guard=guard, operands=tuple(operands))
