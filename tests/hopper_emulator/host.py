"""The launch that the host's LLVM code asks for, by running it.

Mosaic writes descriptors of tensor maps and a list of parameters before it launches. Pointers are
(object, offset in bytes); the operands and results of the kernel are objects ("array", i).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

ELEMENT_BYTES = {1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 2, 9: 4, 10: 8}  # by Mosaic's numbers
LAUNCHES = ("@mosaic_gpu_launch_kernel", "@mosaic_gpu_build_kernel_spec")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMap:
    """What a copy of a box needs; axes from the slowest.

    Attributes:
      array: of the kernel's operands and results.
      width: bytes of an element.
      sizes, strides: of the array, in elements.
      box: elements that are copied.
      swizzle: bytes; 16 is none.
    """

    array: int
    width: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int


@dataclass(slots=True, kw_only=True)
class Launch:
    """A grid.

    Attributes:
      grid, cluster: blocks of threads, x first.
      threads: of a block.
      shared_bytes: of a block.
      parameters: of the kernel: the number of an array, or tensor maps by offset.
    """

    grid: tuple[int, int, int]
    cluster: tuple[int, int, int]
    threads: int
    shared_bytes: int
    parameters: list[int | dict[int, TensorMap]]


@dataclass(slots=True)
class _Host:
    values: dict[str, Any] = field(default_factory=dict)
    memory: dict[tuple[Any, int], Any] = field(default_factory=dict)
    maps: dict[tuple[Any, int], TensorMap] = field(default_factory=dict)

    def value(self, text: str) -> Any:
        return self.values[text] if text.startswith("%") else int(text)

    def numbers(self, pointer: Any, count: int) -> tuple[int, ...]:
        where, offset = pointer
        return tuple(self.memory[where, offset + 8 * i] for i in range(count))


def launch_of(code: str) -> Launch:
    """The launch in a module's text."""
    functions = re.findall(r"define void @\w+\(([^)]*)\) \{\n(.*?)\n\}", code, re.S)
    arguments, body = next(f for f in functions if any(name in f[1] for name in LAUNCHES))
    host = _Host()
    buffers = arguments.split(",")[-1].split()[-1]
    host.values[buffers] = ("arrays", 0)
    for name in re.findall(r"%\d+", arguments)[:-1]:
        host.values[name] = (name, 0)
    for line in body.splitlines():
        if launch := _run(host, line.strip()):
            return launch
    raise AssertionError("no launch")


def _run(host: _Host, line: str) -> Launch | None:
    """Runs an instruction; a launch if it is one."""
    if line.startswith("store "):
        value, target = re.fullmatch(r"store .*? (\S+), ptr (\S+), align \d+", line).groups()
        host.memory[host.value(target)] = host.value(value)
        return None
    if line.startswith("call "):
        name, arguments = re.fullmatch(r"call \S+ (@\w+)\((.*)\)", line).groups()
        values = [host.value(a.split()[-1]) for a in arguments.split(", ")]
        return _call(host, name, values)
    made = re.fullmatch(r"(%\d+) = (.*)", line)
    if made:
        host.values[made[1]] = _made(host, made[1], made[2])
    return None


def _made(host: _Host, name: str, text: str) -> Any:
    operation = text.split()[0]
    last = text.split(", align")[0].split()[-1]
    if operation == "alloca":
        return (name, 0)
    if operation in ("ptrtoint", "inttoptr"):
        return host.value(text.split()[2])
    if operation in ("add", "mul"):
        left, right = (host.value(t) for t in text.split(maxsplit=2)[2].split(", "))
        if isinstance(left, tuple):
            return left[0], left[1] + right
        return left + right if operation == "add" else left * right
    if operation == "load":
        where = host.value(last)
        if where[0] == "arrays":
            return ("array", where[1] // 8), 0
        return host.memory.get(where, where)  # aggregates are named by where they lie
    if operation == "getelementptr":
        return _element(host, text)
    aggregate, *path = re.sub(r"^\w+ \{.*?\} ", "", text).split(", ")
    known = {} if aggregate in ("undef", "poison") else host.value(aggregate)
    if operation == "extractvalue":
        return known[tuple(path)]
    value, *path = path
    return {**known, tuple(path): host.value(value.split()[-1])}


def _element(host: _Host, text: str) -> tuple[Any, int]:
    text = re.sub(r"^getelementptr (inbounds )?(nuw )?", "", text)
    kind, pointer, indices = re.fullmatch(r"(.*?), ptr (\S+), (.*)", text).groups()
    (where, offset), first, *more = (
        host.value(pointer),
        *(host.value(i.split()[-1]) for i in indices.split(", ")),
    )
    offset += first * _size(kind)
    for i in more:
        offset += sum(_size(k) for k in kind.strip("{} ").split(", ")[:i])
    return where, offset


def _size(kind: str) -> int:
    if kind.startswith("{"):
        return sum(_size(k) for k in kind.strip("{} ").split(", "))
    if several := re.fullmatch(r"\[(\d+) x (.*)\]", kind):
        return int(several[1]) * _size(several[2])
    return {"ptr": 8, "i64": 8, "i32": 4, "i16": 2, "i8": 1}[kind]


def _call(host: _Host, name: str, values: list[Any]) -> Launch | None:
    if name == "@mosaic_gpu_init_tma_desc":
        place, (array, offset), element, rank, sizes, strides, swizzle, box = values
        assert offset == 0, "a tensor map that begins inside of an array"
        host.maps[place] = TensorMap(
            array=array[1],
            width=ELEMENT_BYTES[element],
            sizes=host.numbers(sizes, rank),
            strides=host.numbers(strides, rank),
            box=host.numbers(box, rank),
            swizzle=swizzle,
        )
        return None
    assert name in LAUNCHES, name
    tuples = [v for v in values[1:] if isinstance(v, tuple)]
    grid, cluster = (tuple(values[i : i + 3]) for i in (1, 4))
    list_of_parameters = tuples[1] if name == LAUNCHES[0] else tuples[0]
    parameters: list[int | dict[int, TensorMap]] = []
    where, at = list_of_parameters
    while (where, at) in host.memory:
        pointer = host.memory[where, at]
        content = host.memory.get(pointer, pointer)
        if content[0][0] == "array":
            parameters.append(content[0][1])
        else:
            mine = {o: m for (place, o), m in host.maps.items() if place == content[0]}
            parameters.append(mine)
        at += 8
    return Launch(
        grid=grid,
        cluster=tuple(max(1, size) for size in cluster),
        threads=values[7],
        shared_bytes=values[10],
        parameters=parameters,
    )
