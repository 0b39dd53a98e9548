"""Static figures that kernels are held to, in `budgets/kernels.json`.

    {"v5e": {"BF16": {"ratio": ..., "with_waits": ..., "bundles": ..., "spills": ...}, ...,
             "MXFP8 M=8": ..., "BF16 decode": ..., "BF16 of gpt-oss-120b": ...,
             "BF16 of gpt-oss-120b, 512 tokens": ...}, ...,
     "h200": {"BF16 M=16": {"registers": ..., "spill_bytes": ..., "integer_per_pair": ...,
                            "slots_per_pair": ..., "loop_share": ...}, ...}}

On TPU of products, at M = 16 where none is named, of decodes to dense BF16, and of visits to
experts: bundles for a cycle of memory, the same with bundles that only wait, bundles and spilled
registers for 2^20 weights; of the H200, products and visits to experts, see `hopper.Figures`. Each
is a little above the most that was measured with any version of jax that CI has. A change that
beats one lowers it. No budget may be above its ceiling, which all have but, on TPU, experts and
products of other rows than 16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from jentropy.pallas_kernels.targets import TPUS
from jentropy.pallas_kernels.variants import VARIANTS

ROWS = 16  # of x, on TPU, where names of budgets have none
HOPPER_ROWS = (1, 16, 64, 256)
# Whose experts have budgets, see `tpu_grouped`, and with how many tokens: few, so that windows are
# as small as they get, or as many as make them 32 rows.
TOKENS = 16
TOKENS_OF_LAYERS = {
    "gpt-oss-120b": (TOKENS, 512),
    "DeepSeek-V3 gate, up": (TOKENS,),
    "DeepSeek-V3 down": (TOKENS,),
}
ROOM = 1.01  # above what was measured, rounded up to digits; what is not here has none
DIGITS = {
    "ratio": 3,
    "with_waits": 3,
    "bundles": 0,
    "spills": 0,
    "integer_per_pair": 2,
    "slots_per_pair": 2,
    "loop_share": 3,
}

DECODE, OF_EXPERTS = " decode", " of "  # after a variant
# Of every kernel for Hopper.
HOPPER = {"registers": 168, "spill_bytes": 0, "slots_per_pair": 10.0}
# Times what follows where steps are short: integer operations at many rows of x, which leave no
# room for long ones; loops of experts, whose columns (2880) longer ones may not divide.
SHORT_STEPS = 1.25
# By variants: integer operations for a pair of weights, and at M = 16 cycles of a step for those in
# which memory moves its weights.
HOPPER_VARIANTS = {
    "BF16": (3.2, 0.8),
    "FP8 row": (3.9, 0.8),
    "FP8 128x128": (3.9, 0.8),
    "MXFP8": (4.5, 0.8),
    "MXFP4": (3.8, 1.0),
    "NVFP4": (4.3, 1.0),
    "INT8 row": (4.9, 1.0),
    "INT4 row": (2.9, 1.0),
    "INT4 g32": (2.9, 1.0),
    "INT4 g128": (2.9, 1.0),
    "INT4 g128 zeros": (2.9, 1.0),
}

Budget = dict[str, float]


def names(target: str) -> list[str]:
    """Kernels of a target that have budgets."""
    variants = {name: variant for name, variant in VARIANTS.items() if variant.ceilings}
    experts = [
        name_of_experts(name, layer, tokens)
        for name, one in variants.items()
        for layer, each in TOKENS_OF_LAYERS.items()
        for tokens in (each if target in TPUS else (TOKENS,))
        if one.experts
    ]
    if target not in TPUS:
        return [*(f"{name} M={m}" for name in HOPPER_VARIANTS for m in HOPPER_ROWS), *experts]
    products = [name_of(name, m) for name, one in variants.items() for m in one.rows]
    return [*products, *(name + DECODE for name in variants), *experts]


def name_of(variant: str, m: int) -> str:
    """The budget of a product with m rows of x, on TPU."""
    return variant if m == ROWS else f"{variant} M={m}"


def name_of_experts(variant: str, layer: str, tokens: int) -> str:
    """The budget of a visit to an expert of a layer, of so many tokens'."""
    return variant + OF_EXPERTS + layer + ("" if tokens == TOKENS else f", {tokens} tokens")


def ceilings(target: str, name: str) -> Budget:
    """What budgets of a kernel must not be above.

    Raises:
      KeyError: a kernel that has none.
    """
    if name not in names(target):
        raise KeyError(f"{name} on {target}")
    if target not in TPUS:
        product, _, layer = name.partition(OF_EXPERTS)
        variant, _, m = product.partition(" M=")
        integer, loop = HOPPER_VARIANTS[variant]
        if layer:
            return {**HOPPER, "integer_per_pair": integer, "loop_share": loop * SHORT_STEPS}
        if int(m) == ROWS:
            return {**HOPPER, "integer_per_pair": integer, "loop_share": loop}
        return {**HOPPER, "integer_per_pair": integer * (SHORT_STEPS if int(m) > ROWS else 1)}
    place = list(TPUS).index(target)
    if name.endswith(DECODE):
        return {"ratio": VARIANTS[name.removesuffix(DECODE)].decode_ceilings[place]}
    if name not in VARIANTS:
        return {}
    return {"ratio": VARIANTS[name].ceilings[place]}


def path() -> Path:
    """The file."""
    return Path(str(resources.files("jentropy.pallas_kernels") / "budgets" / "kernels.json"))


def load() -> dict[str, dict[str, Budget]]:
    """Budgets by target and kernel."""
    return json.loads(path().read_text())


def cycles(budget: Budget) -> float:
    """Of a kernel on TPU for 2^20 weights: the longer of its schedule, with waits, and memory."""
    return max(budget["with_waits"], 1) * budget["bundles"] / budget["ratio"]


def write(target: str, measured: Mapping[str, Budget], better: Callable[..., float]) -> None:
    """Writes the lower (`min`) or higher (`max`) of the budgets and what these figures set."""
    known = load() if path().is_file() else {}
    budgets = known.setdefault(target, {})
    for name, figures in measured.items():
        new = proposed(target, name, figures)
        before = new | budgets.get(name, {})
        budgets[name] = {what: better(new[what], before[what]) for what in new}
    known[target] = {name: budgets[name] for name in names(target) if name in budgets}
    path().write_text(json.dumps(known, indent=1) + "\n")


def proposed(target: str, name: str, figures: Mapping[str, float]) -> Budget:
    """The budget that these figures would set, none above its ceiling."""
    limits = ceilings(target, name)
    new = {
        what: _rounded_up(value * ROOM, DIGITS[what]) if what in DIGITS else value
        for what, value in figures.items()
    }
    return {
        what: min(value, limits[what]) if what in limits else value for what, value in new.items()
    }


def exceeded(target: str, measured: Mapping[str, Budget]) -> list[str]:
    """Figures that are above their budgets, in words; a kernel without a budget is one."""
    budgets = load().get(target, {})
    over = []
    for name, figures in measured.items():
        for what, value in figures.items():
            limit = budgets.get(name, {}).get(what, -math.inf)
            if value > limit:
                over.append(f"{name}: {what} {value:.3f} above {limit}")
    return over


def _rounded_up(value: float, digits: int) -> float:
    return math.ceil(round(value * 10**digits, 6)) / 10**digits
