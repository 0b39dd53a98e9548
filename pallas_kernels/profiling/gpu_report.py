"""`profile --gpu h200`: what the kernels for Hopper are made of, as a table, JSON and budgets.

integer    operations on the integer units in the loop over steps, per pair of weights
slots      all instructions there, per pair
share      of the instructions that the GPU starts while memory moves those weights
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jentropy.errors import CheckError
from jentropy.pallas_kernels.decode_matmul.gpu_plan import Plan

from . import budgets, gpu
from .gpu import Figures
from .plans import LAYERS

TARGET = "h200"
ROWS = (1, 16, 64, 256)  # of x
SHAPE = (4096, 28672)  # K and N: gate and up of Llama-3-8B
COLUMNS = ("M", "tiles", "parts", "registers", "spills", "integer", "slots", "share")
# What every budget must stay below.
CEILINGS = {"registers": 168, "spill_bytes": 0, "integer_per_pair": 3.2}


def run(
    dump: Path,
    rows: Sequence[int],
    shape: tuple[int, int],
    *,
    file: str | None,
    check: bool,
    write: Callable[..., float] | None,
) -> None:
    """Prints, writes and checks figures of products.

    Raises:
      CheckError: with `check`, a budget is exceeded.
    """
    gpu.prepare(dump)
    k, n = shape
    found = {m: gpu.measure(dump, m, n, k) for m in rows}
    if file != "-":
        versions = ", ".join(f"{name} {version}" for name, version in gpu.versions().items())
        print(f"{TARGET}, {versions}, weight {k} x {n}")
        print(_line(COLUMNS))
        for m, figures in found.items():
            print(_line(_cells(m, figures)))
    if file:
        document = {
            "target": TARGET,
            **gpu.versions(),
            "shape": list(shape),
            "products": [to_json(m, figures) for m, figures in found.items()],
        }
        text = json.dumps(document, indent=1)
        print(text) if file == "-" else Path(file).write_text(text + "\n")
    held = {name_of(m): figures.held() for m, figures in found.items() if m in ROWS}
    if write:
        budgets.write(TARGET, {name: _with_room(own) for name, own in held.items()}, write)
    if check:
        check_budgets(held)


def name_of(m: int) -> str:
    """Of a budget."""
    return f"BF16 M={m}"


def to_json(m: int, figures: Figures) -> dict[str, Any]:
    """One product."""
    plan = figures.plan
    return {
        "m": m,
        "tile_k": plan.config.tile_k,
        "stages": plan.config.stages,
        "rounds": plan.config.rounds,
        "parts": plan.parts,
        "shared_bytes": plan.shared_bytes,
        **figures.held(),
        "issue_share": round(figures.issue_share, 3),
        "loop": dict(figures.loop.most_common()),
    }


def _cells(m: int, figures: Figures) -> list[str]:
    plan, held = figures.plan, figures.held()
    return [
        str(m),
        f"{plan.config.tile_k}x{plan.config.stages}",
        str(plan.parts),
        str(held["registers"]),
        str(held["spill_bytes"]),
        f"{figures.integer_per_pair:.2f}",
        f"{figures.slots_per_pair:.2f}",
        f"{figures.issue_share:.2f}",
    ]


def _line(texts: Sequence[str]) -> str:
    return "  ".join(text.rjust(9) for text in texts)


def _with_room(held: Mapping[str, float]) -> dict[str, float]:
    """Budgets that these figures would set: room for instructions, none above a ceiling."""
    return {
        name: min(
            round(value * budgets.ROOM, 2) if name.endswith("pair") else value,
            CEILINGS.get(name, float("inf")),
        )
        for name, value in held.items()
    }


def check_budgets(held: Mapping[str, Mapping[str, float]]) -> None:
    """Raises where a budget is exceeded."""
    known = budgets.load()[TARGET]
    over = [
        f"{name}: {what} {value} above {known[name][what]}"
        for name, own in held.items()
        for what, value in own.items()
        if value > known[name][what]
    ]
    if over:
        raise CheckError(f"budgets of {TARGET}: " + "; ".join(over))


def distinct(rows: Iterable[int] = (1, 8, 16, 64, 256)) -> list[tuple[str, int, Plan]]:
    """Layer, rows of x and plan of the first of every kernel that the layers of all models need.

    A kernel is decided by rows of x, stages and tiles; how many tiles there are only ends loops.
    """
    found: dict[object, tuple[str, int, Plan]] = {}
    for model, layers in LAYERS.items():
        for layer, (k, n) in layers.items():
            for m in rows:
                plan = gpu.plan_of(m, n, k)
                kernel = plan.m, plan.config.tile_k, plan.config.stages, plan.parts > 1
                found.setdefault(kernel, (f"{model} {layer}", m, plan))
    return list(found.values())
