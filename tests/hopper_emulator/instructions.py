"""What instructions do that are no arithmetic: memory, barriers, copies, products.

Each is a function (warp, instruction, mask) by the first part of its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import LANES, WIDTHS, width_of
from .block import RANK_BIT, Barrier
from .fault import Fault
from .global_memory import FIRST
from .host import TensorMap
from .ptx import Instruction
from .tensor_cores import multiply, names_of
from .warp import PARAMETER_BITS, PARAMETERS, Warp

Mask = Any
SEMANTICS = {"acquire", "release", "acq_rel", "relaxed", "volatile"}


def _names(text: str) -> list[str]:
    return names_of(text) if text.startswith("{") else [text]


def _one(lanes: Any, mask: Mask) -> int:
    """What all threads of a mask have."""
    chosen = np.broadcast_to(np.asarray(lanes), 32)[mask]
    if (chosen != chosen[0]).any():
        raise Fault("threads disagree")
    return int(chosen[0])


def load(warp: Warp, code: Instruction, mask: Mask) -> None:
    names = _names(code.operands[0])
    size = width_of(code.parts[-1]) // 8
    addresses = warp.address(code.operands[1])[mask]
    if addresses[0] >= PARAMETERS:
        number = int(addresses[0] - PARAMETERS) >> PARAMETER_BITS
        array = warp.block.memory.launch_parameters[number]
        warp.write(code.operands[0], np.uint64(warp.block.memory.address(array)), mask)
        return
    total = size * len(names)
    if SEMANTICS & set(code.parts) - {"relaxed", "volatile"}:
        made = np.zeros(32, np.uint64)
        for lane in LANES[mask]:
            at = int(warp.address(code.operands[1])[lane])
            made[lane] = warp.block.memory.atomic(at, "ld", size, 0, set(code.parts), warp.seen)
        warp.write(names[0], made, mask)
        return
    if addresses[0] >= FIRST:
        warp.expect_allowed()
        data = warp.block.memory.read(addresses, total, warp.block.place, warp.seen)
    else:
        data = warp.block.read(addresses, total)
    for i, name in enumerate(names):
        made = np.zeros(32, WIDTHS[8 * size])
        made[mask] = np.ascontiguousarray(data[:, i * size : (i + 1) * size]).view(made.dtype)[:, 0]
        warp.write(name, made, mask)


def store(warp: Warp, code: Instruction, mask: Mask) -> None:
    size = width_of(code.parts[-1]) // 8
    values = [warp.value(name) for name in _names(code.operands[1])]
    columns = [
        np.ascontiguousarray(np.broadcast_to(np.asarray(v), 32).astype(WIDTHS[8 * size]))
        for v in values
    ]
    data = np.concatenate([c.view(np.uint8).reshape(32, size) for c in columns], axis=1)[mask]
    addresses = warp.address(code.operands[0])[mask]
    if SEMANTICS & set(code.parts) - {"relaxed", "volatile"}:
        for lane in LANES[mask]:
            at, value = int(warp.address(code.operands[0])[lane]), int(columns[0][lane])
            warp.block.memory.atomic(at, "exch", size, value, set(code.parts), warp.seen)
    elif addresses[0] >= FIRST:
        warp.expect_allowed()
        warp.block.memory.write(addresses, data, warp.who, warp.seen)
    else:
        warp.block.write(addresses, data, warp.number)


def atomic(warp: Warp, code: Instruction, mask: Mask) -> None:
    returns = code.parts[0] == "atom"
    address, operand = code.operands[1:3] if returns else code.operands[:2]
    size = width_of(code.parts[-1]) // 8
    operation = next(part for part in code.parts if part in ("add", "exch", "inc"))
    made = np.zeros(32, np.uint64)
    values = np.broadcast_to(np.asarray(warp.value(operand)), 32)
    for lane in LANES[mask]:
        at, value = int(warp.address(address)[lane]), int(values[lane]) & (1 << 8 * size) - 1
        made[lane] = warp.block.memory.atomic(
            at, operation, size, value, set(code.parts), warp.seen
        )
    if returns:
        warp.write(code.operands[0], made, mask)


def store_matrix(warp: Warp, code: Instruction, mask: Mask) -> None:
    warp.expect_together(code)
    values = [np.asarray(warp.value(name)) for name in names_of(code.operands[1])]
    addresses = warp.address(code.operands[0])
    if "trans" in code.parts:
        raise Fault(f"not known here: {code}")
    for i, lanes in enumerate(values):
        rows = np.ascontiguousarray(lanes.astype(np.uint32)).view(np.uint8).reshape(8, 16)
        warp.block.write(addresses[8 * i : 8 * i + 8], rows, warp.number)


def move(warp: Warp, code: Instruction, mask: Mask) -> None:
    target, source = code.operands
    half = width_of(code.parts[-1]) // 2
    if source.startswith("{"):
        low, high = (np.asarray(warp.value(name)).astype(np.uint64) for name in names_of(source))
        bits = np.uint64((1 << half) - 1)
        warp.write(target, low & bits | (high & bits) << np.uint64(half), mask)
    elif target.startswith("{"):
        lanes = np.asarray(warp.value(source)).astype(np.uint64)
        for i, name in enumerate(names_of(target)):
            warp.write(name, lanes >> np.uint64(i * half), mask)
    else:
        warp.write(target, warp.value(source), mask)


def elect(warp: Warp, code: Instruction, mask: Mask) -> None:
    warp.expect_together(code)
    lane, chosen = code.operands[0].split("|")
    warp.write(lane, np.uint32(0), mask)
    warp.write(chosen, LANES == 0, mask)


def shuffle(warp: Warp, code: Instruction, mask: Mask) -> None:
    warp.expect_together(code)
    lanes = np.broadcast_to(np.asarray(warp.value(code.operands[1])), 32)
    by = np.broadcast_to(np.asarray(warp.value(code.operands[2])), 32).astype(int)
    source = {"idx": by, "bfly": LANES ^ by, "up": LANES - by, "down": LANES + by}[code.parts[2]]
    source = np.where((source >= 0) & (source < 32), source, LANES)
    warp.write(code.operands[0].split("|")[0], lanes[source], mask)


def named_barrier(warp: Warp, code: Instruction, mask: Mask) -> None:
    if "warp" in code.parts:
        warp.hold()
        return
    warp.expect_together(code)
    if "arrive" in code.parts and "cluster" not in code.parts:
        raise Fault(f"not known here: {code}")
    block = warp.block
    if "cluster" in code.parts:
        everyone = [w for b in block.cluster for w in b.warps]
        key, place = -1, block.cluster[0]
        if "arrive" in code.parts:
            met = place.named.setdefault(key, set())
            met.add(warp)
            warp.at_cluster = met
            if len(met) == len(everyone):
                _meet(met)
                place.named[key] = set()
                met.add(None)
            return
        met = warp.at_cluster
        warp.waiting = lambda: None in met
        return
    number = _one(warp.value(code.operands[0]), mask)
    threads = [_one(warp.value(o), mask) for o in code.operands[1:]]
    count = threads[0] // 32 if threads else len(block.warps)
    met = block.named.setdefault(number, set())
    met.add(warp)
    if len(met) > count:
        raise Fault(f"more threads at barrier {number} than it is for")
    if len(met) == count:
        _meet(met)
        block.named[number] = set()
        met.add(None)
        return
    warp.waiting = lambda: None in met


def _meet(warps: set[Any]) -> None:
    """All of them know what each does."""
    for one in warps:
        next(iter(warps)).seen.join(one.seen)
    for one in warps:
        one.seen.join(next(iter(warps)).seen)


def memory_barrier(warp: Warp, code: Instruction, mask: Mask) -> None:
    block = warp.block
    if code.parts[0] == "mapa":
        rank = _one(warp.value(code.operands[2]), mask)
        inner = np.asarray(warp.value(code.operands[1])).astype(np.int64) & (1 << RANK_BIT) - 1
        warp.write(code.operands[0], inner + (rank << RANK_BIT), mask)
        return
    operation = code.parts[1]
    if operation == "init":
        for address, count in _pairs(warp, code, mask):
            block.barriers[address] = Barrier(count=count, pending=count)
    elif operation == "arrive":
        operands = list(code.operands)
        if not operands[0].startswith("["):
            warp.write(operands.pop(0), np.uint64(0), mask)
        addresses = warp.address(operands[0])[mask]
        more = np.broadcast_to(
            np.asarray(warp.value(operands[1]) if operands[1:] else np.uint64(1)), 32
        )[mask]
        for address, value in zip(addresses.tolist(), more.tolist(), strict=True):
            barrier = block.barrier(address)
            barrier.seen.join(warp.seen)
            if "expect_tx" in code.parts:
                barrier.bytes_left += int(value)
                barrier.arrive()
            else:
                barrier.arrive(int(value))
    elif operation == "expect_tx":
        for address, value in _pairs(warp, code, mask):
            block.barrier(address).bytes_left += value
    elif operation == "wait":
        barrier = block.barrier(_one(warp.address(code.operands[0]), mask))
        parity = _one(warp.value(code.operands[1]), mask) & 1

        def over() -> bool:
            if barrier.phase == parity:
                return False
            warp.seen.join(barrier.seen)
            return True

        warp.waiting = over
    else:
        raise Fault(f"not known here: {code}")


def _pairs(warp: Warp, code: Instruction, mask: Mask) -> list[tuple[int, int]]:
    lanes = np.broadcast_to(np.asarray(warp.value(code.operands[1])), 32)[mask]
    addresses = warp.address(code.operands[0])[mask]
    return list(zip(addresses.tolist(), map(int, lanes.tolist()), strict=True))


def copy(warp: Warp, code: Instruction, mask: Mask) -> None:
    name = code.name
    if "commit_group" in name:
        warp.groups.append(warp.copies)
        warp.copies = []
        return
    if "wait_group" in name:
        left = int(code.operands[0])
        warp.waiting = lambda: (
            sum(any(not job.done for job in group) for group in warp.groups) <= left
        )
        return
    if mask.sum() != 1 or "tensor" not in name:
        raise Fault(f"a copy of several threads, or of no tensor: {code}")
    lane = int(LANES[mask][0])
    of = lambda lanes: int(np.broadcast_to(np.asarray(lanes), 32)[lane])  # noqa: E731
    out = ".global.shared" in name
    pointer, at = re.fullmatch(
        r"\[([%\w]+), \{(.*?)\}\s*\]", code.operands[0 if out else 1]
    ).groups()
    warp.expect_allowed()
    box = _map_at(warp, of(warp.value(pointer)))
    coordinates = [of(np.asarray(warp.value(c.strip())).astype(np.int32)) for c in at.split(",")]
    if out:
        address = of(warp.address(code.operands[1]))
        warp.copies.append(warp.block.copy_out(box, coordinates, address, warp))
        return
    target, barrier = (of(warp.address(code.operands[i])) for i in (0, 2))
    inner = (1 << RANK_BIT) - 1
    ranks = [warp.block.rank]
    if "multicast::cluster" in name:
        chosen = of(warp.value(code.operands[3]))
        ranks = [i for i in range(len(warp.block.cluster)) if chosen >> i & 1]
    for rank in ranks:
        where = rank << RANK_BIT
        warp.block.cluster[rank].copy_in(
            box, coordinates, target & inner | where, barrier & inner | where
        )


def _map_at(warp: Warp, address: int) -> TensorMap:
    number, offset = divmod(address - PARAMETERS, 1 << PARAMETER_BITS)
    return warp.block.memory.launch_parameters[number][offset]


def fence(warp: Warp, code: Instruction, mask: Mask) -> None:
    parts = set(code.parts)
    if "proxy" in parts:
        warp.block.fence(warp.number)
    elif parts & {"acq_rel", "sc", "gl", "sys"} and "cta" not in parts:
        warp.block.memory.fence(warp.seen)


def tensor_core(warp: Warp, code: Instruction, mask: Mask) -> None:
    warp.expect_together(code)
    group = warp.group
    if "fence" in code.parts:
        warp.fenced = warp.clock
        return
    met = group.met
    met[warp.number] = warp.pc
    if len(met) < len(group.warps):
        turn = group.turn
        warp.waiting = lambda: group.turn != turn
        return
    if len(set(met.values())) > 1:
        raise Fault(f"warps of a warpgroup are not together at {code}")
    met.clear()
    group.turn += 1
    if "commit_group" in code.parts:
        group.commit()
    elif "wait_group" in code.parts:
        group.wait(warp.block, int(code.operands[0]))
    else:
        multiply(warp.block, group, code.name, code.operands)


def wait_for_grids(warp: Warp, code: Instruction, mask: Mask) -> None:
    if "wait" in code.parts:
        warp.expect_together(code)
        warp.may_touch = True


def nothing(warp: Warp, code: Instruction, mask: Mask) -> None:
    """What changes no state that is modelled."""


INSTRUCTIONS: dict[str, Callable[[Warp, Instruction, Mask], None]] = {
    **{"ld": load, "st": store, "atom": atomic, "red": atomic, "stmatrix": store_matrix},
    **{"mov": move, "elect": elect, "shfl": shuffle, "cp": copy, "wgmma": tensor_core},
    **{"bar": named_barrier, "barrier": named_barrier, "mbarrier": memory_barrier},
    **{"mapa": memory_barrier, "fence": fence, "membar": fence, "prefetch": nothing},
    **{"setmaxnreg": nothing, "griddepcontrol": wait_for_grids, "nanosleep": nothing},
}
