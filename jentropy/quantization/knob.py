"""The one knob of a recipe: how coarse its numbers are, turned until bits are met."""

from __future__ import annotations

import math
from collections.abc import Callable

from jentropy.errors import InputError

CLOSE = 0.004  # bits of a weight: as good as met
TRIES = 16
FINEST, COARSEST = 2.0**-20, 2.0**20


def turned(estimate: Callable[[float], float], bits: float) -> float:
    """The factor at which so many bits are needed.

    A factor of two is a bit, or less where few numbers are left; so each try goes as far as that
    says, and halves what is left of the interval where it would leave it.

    Args:
      estimate: (factor) -> bits of a weight; falls, but for noise.
      bits: what is asked for.

    Returns:
      The factor whose bits came closest, and not above by more than `CLOSE` where that could be.

    Raises:
      InputError: more bits than there are at any factor, or fewer; a number that cannot be.

    Example:
      >>> round(turned(lambda factor: 8 - math.log2(factor), 3.0))
      32
    """
    if not 0 < bits < math.inf:
        raise InputError("bits of a weight", expected="a number above 0", found=bits)
    finest, coarsest, factor = FINEST, COARSEST, 1.0
    tried: list[tuple[float, float]] = []
    for _ in range(TRIES):
        found = estimate(factor)
        tried.append((found, factor))
        if abs(found - bits) < CLOSE:
            break
        if found > bits:
            finest = max(finest, factor)
        else:
            coarsest = min(coarsest, factor)
        step = _slope(tried) * (found - bits)
        factor *= 2.0 ** max(-6.0, min(6.0, step))
        if not finest < factor < coarsest:
            factor = math.sqrt(finest * coarsest)
        if coarsest / finest < 1 + 1e-4:
            break
    below = [pair for pair in tried if pair[0] <= bits + CLOSE]
    found, factor = min(below or tried, key=lambda pair: abs(pair[0] - bits))
    if abs(found - bits) > max(0.05, 0.05 * bits):
        raise InputError(
            "bits of a weight",
            expected=f"what the recipe can have, {min(tried)[0]:.3f} to {max(tried)[0]:.3f}",
            found=f"{bits:g}",
        )
    return factor


def _slope(tried: list[tuple[float, float]]) -> float:
    """Doublings of the factor that take a bit: 1, or what the last two tries say."""
    if len(tried) < 2:
        return 1.0
    (b0, f0), (b1, f1) = tried[-2:]
    if b0 == b1 or f0 == f1:
        return 1.0
    return min(4.0, max(0.5, math.log2(f1 / f0) / (b0 - b1)))
