"""What instructions on registers compute, on the 32 lanes of a warp.

`compute(instruction)` gives a function of the operands' lanes, or None for what is no arithmetic.
Lanes are unsigned of the operands' width; predicates are bool.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

Lanes = Any
LANES = np.arange(32)
WIDTHS = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
COMPARE = {
    **{"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le},
    **{"gt": operator.gt, "ge": operator.ge, "lo": operator.lt, "hi": operator.gt},
    **{"ls": operator.le, "hs": operator.ge},
}
LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
PLAIN = {**LOGIC, "add": operator.add, "sub": operator.sub}


@cache
def width_of(kind: str) -> int:
    """Bits of a type such as u32, bf16x2 or pred."""
    if kind == "pred":
        return 1
    if kind in ("bf16x2", "f16x2"):
        return 32
    return int("".join(c for c in kind.removeprefix("bf") if c.isdigit()))


def as_kind(lanes: Lanes, kind: str) -> Lanes:
    """Lanes as signed or unsigned numbers of a type, whose width registers have at the least."""
    width = width_of(kind)
    lanes = np.asarray(lanes).astype(WIDTHS[width])
    return lanes.view(f"i{width // 8}") if kind[0] == "s" else lanes


def bf16_of(lanes: Lanes) -> Lanes:
    """float64 numbers of bfloat16 codes."""
    wide = np.asarray(lanes).astype(np.uint32) << np.uint32(16)
    with np.errstate(invalid="ignore"):
        return wide.view(np.float32).astype(np.float64)


def to_bf16(numbers: Lanes) -> Lanes:
    """Codes of float64 numbers, rounded once to the nearest, ties to even."""
    with np.errstate(all="ignore"):
        exponent = np.frexp(np.where(np.isfinite(numbers), numbers, 0))[1] - 1
        unit = np.exp2(np.maximum(exponent, -126) - 7.0)
        rounded = np.where(np.isfinite(numbers), np.rint(numbers / unit) * unit, numbers)
        codes = (rounded.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FFF), codes)


def f32_of(lanes: Lanes) -> Lanes:
    """float32 numbers of their bits."""
    return np.ascontiguousarray(lanes, np.uint32).view(np.float32)


def to_f32(numbers: Lanes) -> Lanes:
    """Bits of numbers as float32."""
    with np.errstate(all="ignore"):
        return np.asarray(numbers).astype(np.float32).view(np.uint32)


def halves(lanes: Lanes) -> tuple[Lanes, Lanes]:
    """The low and the high 16 bits."""
    lanes = np.asarray(lanes).astype(np.uint32)
    return (lanes & np.uint32(0xFFFF)).astype(np.uint16), (lanes >> np.uint32(16)).astype(np.uint16)


def joined(low: Lanes, high: Lanes) -> Lanes:
    """The inverse of `halves`."""
    return low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)


def _both(lanes: Lanes) -> Lanes:
    """The low halves of all lanes, then the high ones."""
    return np.concatenate(halves(np.broadcast_to(lanes, 32)))


_FLOATS: dict[str, Callable[..., Lanes]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: a * b + c,
    "max": np.fmax,
    "min": np.fmin,
    "neg": lambda a: -a,
    "abs": np.abs,
}


def _of_floats(name: str, kind: str) -> Callable[..., Lanes]:
    function = _FLOATS[name]

    def on_bf16(*codes: Lanes) -> Lanes:
        with np.errstate(all="ignore"):
            return to_bf16(function(*map(bf16_of, codes)))

    if kind == "bf16":
        return on_bf16
    if kind == "bf16x2":
        return lambda *lanes: joined(*np.split(on_bf16(*map(_both, lanes)), 2))
    assert kind == "f32", kind

    def on_f32(*lanes: Lanes) -> Lanes:
        with np.errstate(all="ignore"):
            wide = [f32_of(a).astype(np.float64) for a in lanes]
            return to_f32(function(*wide))  # float64 holds products of float32 exactly

    return on_f32


def _shifted(a: Lanes, count: Lanes, kind: str, left: bool) -> Lanes:
    width = width_of(kind)
    a = as_kind(a, kind)
    count = np.asarray(count).astype(np.uint64)
    inside = np.minimum(count, np.uint64(width - 1)).astype(a.dtype)
    moved = a << inside if left else a >> inside
    if kind[0] == "s" and not left:
        return moved
    return np.where(count >= width, a.dtype.type(0), moved)


def _funnel(a: Lanes, b: Lanes, count: Lanes, left: bool) -> Lanes:
    """32 bits of b : a, moved by the count modulo 32."""
    wide = (np.asarray(b).astype(np.uint64) << np.uint64(32)) | np.asarray(a).astype(np.uint64)
    count = np.asarray(count).astype(np.uint64) & np.uint64(31)
    return (wide >> (np.uint64(32) - count if left else count)).astype(np.uint32)


def _permuted(a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    both = np.stack([*_bytes(a), *_bytes(b)])
    out = np.zeros(32, np.uint32)
    for i in range(4):
        choice = np.asarray(selector).astype(np.uint32) >> np.uint32(4 * i) & np.uint32(0xF)
        chosen = both[np.broadcast_to(choice & np.uint32(7), 32), LANES]
        sign = np.where(chosen & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        out |= np.where(choice & np.uint32(8), sign, chosen) << np.uint32(8 * i)
    return out


def _bytes(lanes: Lanes) -> list[Lanes]:
    wide = np.broadcast_to(np.asarray(lanes).astype(np.uint32), 32)
    return [wide >> np.uint32(8 * i) & np.uint32(0xFF) for i in range(4)]


def _by_table(a: Lanes, b: Lanes, c: Lanes, table: Lanes) -> Lanes:
    """LOP3: bit 4 x + 2 y + z of the table is the result for bits x, y, z."""
    table, out = int(np.asarray(table).flat[0]), np.uint32(0)
    for i in range(8):
        if table >> i & 1:
            terms = [v if i >> place & 1 else ~v for v, place in ((a, 2), (b, 1), (c, 0))]
            out = out | terms[0] & terms[1] & terms[2]
    return out


def _field(a: Lanes, at: Lanes, length: Lanes, kind: str) -> Lanes:
    assert kind[0] == "u", kind
    wide = np.asarray(a).astype(np.uint64) >> np.asarray(at).astype(np.uint64)
    return wide & (np.uint64(1) << np.asarray(length).astype(np.uint64)) - np.uint64(1)


def _multiplied(parts: list[str]) -> Callable[..., Lanes]:
    kind = parts[-1]
    how = parts[1]
    width = width_of(kind)

    def product(a: Lanes, b: Lanes) -> Lanes:
        exact = as_kind(a, kind).astype(object) * as_kind(b, kind).astype(object)
        return exact >> width if how == "hi" else exact

    def low(a: Lanes, b: Lanes) -> Lanes:
        return as_kind(a, kind) * as_kind(b, kind)

    out = WIDTHS[2 * width if how == "wide" else width]
    mask = (1 << 8 * np.dtype(out).itemsize) - 1

    def run(a: Lanes, b: Lanes, c: Lanes | None = None) -> Lanes:
        if how == "lo":
            made = low(a, b)
            return made if c is None else made + as_kind(c, kind)
        made = product(a, b)
        made = made if c is None else made + np.asarray(c).astype(object)
        return np.array([int(v) & mask for v in np.broadcast_to(made, 32)], out)

    return run


def _converted(parts: list[str]) -> Callable[..., Lanes]:
    to, given = parts[-2], parts[-1]
    if (to, given) == ("f32", "bf16"):
        return lambda a: joined(np.zeros_like(a), np.asarray(a).astype(np.uint16))
    if (to, given) == ("bf16", "f32"):
        return lambda a: to_bf16(f32_of(a).astype(np.float64))
    if (to, given) == ("bf16x2", "f32"):  # the first operand becomes the high half
        return lambda a, b: joined(*(to_bf16(f32_of(v).astype(np.float64)) for v in (b, a)))
    if to[0] in "us" and given[0] in "us":
        return lambda a: as_kind(a, given).astype(WIDTHS[width_of(to)])
    if to == "f32" and given[0] in "us":
        return lambda a: to_f32(as_kind(a, given).astype(np.float64))
    raise NotImplementedError(".".join(parts))


def _compared(parts: list[str]) -> Callable[..., Lanes]:
    compare, kind = COMPARE[parts[1]], parts[-1]
    logic = LOGIC.get(parts[2])
    read = f32_of if kind == "f32" else lambda a: as_kind(a, kind)

    def run(a: Lanes, b: Lanes, more: Lanes | None = None) -> Lanes:
        made = compare(read(a), read(b))
        return made if logic is None or more is None else logic(made, more)

    return run


@cache
def compute(name: str) -> Callable[..., Lanes] | None:
    """What an instruction computes, by its name."""
    parts = name.split(".")
    operation, kind = parts[0], parts[-1]
    if operation == "setp":
        return _compared(parts)
    if operation == "cvt":
        return _converted(parts)
    if operation in _FLOATS and kind in ("f32", "bf16", "bf16x2"):
        return _of_floats(operation, kind)
    if operation in ("mul", "mad"):
        return _multiplied(parts)
    by_name: dict[str, Callable[..., Lanes]] = {
        "not": operator.invert,
        "neg": lambda a: -as_kind(a, kind),
        "abs": lambda a: np.abs(as_kind(a, kind)),
        "min": lambda a, b: np.minimum(as_kind(a, kind), as_kind(b, kind)),
        "max": lambda a, b: np.maximum(as_kind(a, kind), as_kind(b, kind)),
        "div": lambda a, b: as_kind(a, kind) // as_kind(b, kind),
        "rem": lambda a, b: as_kind(a, kind) % as_kind(b, kind),
        "shl": lambda a, n: _shifted(a, n, kind, True),
        "shr": lambda a, n: _shifted(a, n, kind, False),
        "bfe": lambda a, at, length: _field(a, at, length, kind),
        "shf": lambda a, b, n: _funnel(a, b, n, parts[1] == "l"),
        "prmt": _permuted,
        "lop3": _by_table,
        "selp": lambda a, b, p: np.where(p, a, b),
        "cvta": lambda a: a,
        **PLAIN,
    }
    return by_name.get(operation)
