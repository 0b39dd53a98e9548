"""Static figures that kernels are held to, in `budgets/kernels.json`.

    {"v5e": {"BF16": {"ratio": ..., "bundles": ..., "spills": ...}, ...,
             "BF16 decode": ...}, ...}

of products at M = 16 and of decodes to dense BF16: bundles for a cycle of memory, bundles for 2^20
weights, and spilled registers for 2^20 weights, each a little above the most that was measured with
any version of jax that CI has. A change that beats one lowers it. Of the H200 see `gpu_report`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from jentropy.pallas_kernels.targets import TARGETS

from .measuring import Figures

ROWS = 16  # of x
UNIT = 1 << 20  # weights
ROOM = 1.01  # above what was measured
DIGITS = 3

DECODE = " decode"  # after a format

Budgets = dict[str, dict[str, dict[str, float]]]

# What every budget of a ratio must not be above, by format: v5e, v6e, v7x.
CEILINGS = {
    "BF16": (0.40, 0.62, 1.10),
    "FP8 128x128": (0.22, 0.38, 0.50),
    "MXFP8": (0.45, 0.66, 1.00),
    "INT4 g128": (0.75, 0.95, 1.00),
}
DECODE_CEILING = 1.00  # of every format and TPU


def path() -> Path:
    """The file."""
    return Path(str(resources.files("jentropy.pallas_kernels") / "budgets" / "kernels.json"))


def load() -> Budgets:
    """Budgets by target and format."""
    return json.loads(path().read_text())


def write(
    target: str, proposals: dict[str, dict[str, float]], better: Callable[..., float]
) -> None:
    """Writes the lower (`min`) or higher (`max`) of what is held and what is proposed."""
    known = load() if path().is_file() else {}
    own = known.setdefault(target, {})
    for name, new in proposals.items():
        own[name] = {what: better(new[what], own.get(name, new)[what]) for what in new}
    path().write_text(json.dumps(known, indent=1) + "\n")


def held(figures: Figures) -> dict[str, float]:
    """What of a kernel's figures is held."""
    share = UNIT / (figures.tile[0] * figures.tile[1])
    own = figures.schedule
    return {
        "ratio": figures.ratio,
        "bundles": own.bundles * share,
        "spills": own.spills * share,
    }


def exceeded(figures: Figures, budget: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Figures above their budget: what was measured, and what is allowed."""
    return {
        name: (value, budget[name]) for name, value in held(figures).items() if value > budget[name]
    }


def proposed(target: str, name: str, figures: Figures) -> dict[str, float]:
    """The budget that these figures would set, no ratio above its ceiling."""
    new = {
        what: _rounded_up(value * ROOM, DIGITS if what == "ratio" else 0)
        for what, value in held(figures).items()
    }
    new["ratio"] = min(new["ratio"], ceiling(target, name))
    return new


def ceiling(target: str, name: str) -> float:
    """What the budget of a ratio must not be above."""
    if name.endswith(DECODE):
        return DECODE_CEILING
    return CEILINGS[name][list(TARGETS).index(target)] if name in CEILINGS else math.inf


def _rounded_up(value: float, digits: int) -> float:
    return math.ceil(value * 10**digits) / 10**digits
