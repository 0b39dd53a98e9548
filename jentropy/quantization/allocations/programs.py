"""The choice of one of several ways for each tensor, best of all within a budget: exactly.

States are what tensors up to one may cost and lose together, one tensor after the other. A state
goes that costs and loses no less than another, or that cannot become better than a choice which is
known: what it loses, and the least that the tensors after it can, by the relaxed program in which a
tensor may take shares of its ways. Costs are any numbers: bits, or seconds that were measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from jentropy.errors import InputError


def cheapest(
    costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """Which way each tensor takes, so that the sum of losses is least and costs fit the budget.

    Args:
      costs: of every tensor those of its ways, 0 or more.
      losses: of the same.
      budget: what the chosen ways may cost together.

    Returns:
      A way for each tensor.

    Raises:
      InputError: the cheapest ways together cost more.

    Example:
      >>> cheapest([[1, 2], [1, 2]], [[9.0, 5.0], [4.0, 3.0]], budget=3)
      [1, 0]

    References:
      HAWQ-V3, arXiv 2011.10680, section 3.4, whose integer program this solves.
    """
    least = sum(min(each) for each in costs)
    if least > budget * (1 + 1e-12):
        raise InputError("budget of an allocation", expected=f"at least {least:.6g}", found=budget)
    hulls = [_hull(c, v) for c, v in zip(costs, losses, strict=True)]
    bounds = [_Relaxed(hulls[n:]) for n in range(len(hulls) + 1)]
    greedy, known = bounds[0].rounded(budget)
    # States: cost, loss, and the way back as (state before, way).
    states = np.zeros((1, 2))
    back: list[tuple[np.ndarray, np.ndarray]] = []
    for n, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        ways = len(cost)
        spread = states[:, None, :] + np.stack((cost, loss), axis=-1)[None].astype(np.float64)
        flat = spread.reshape(-1, 2)
        order = np.lexsort((flat[:, 1], flat[:, 0]))
        best = np.minimum.accumulate(np.concatenate(([math.inf], flat[order, 1])))[:-1]
        order = order[flat[order, 1] < best]
        rest = bounds[n + 1]
        kept = [
            i
            for i in order
            if rest.fits(budget - flat[i, 0])
            and flat[i, 1] + rest.least(budget - flat[i, 0]) <= known * (1 + 1e-12)
        ]
        if not kept:  # by rounding errors alone
            return greedy
        chosen = np.array(kept)
        back.append((chosen // ways, chosen % ways))
        states = flat[chosen]
    at, path = int(states[:, 1].argmin()), []
    for before, way in reversed(back):
        path.append(int(way[at]))
        at = int(before[at])
    return path[::-1]


def _hull(costs: Sequence[float], losses: Sequence[float]) -> list[tuple[float, float, int]]:
    """Cost, loss and number of the ways on the lower convex hull, from the cheapest on."""
    points = sorted((c, v, i) for i, (c, v) in enumerate(zip(costs, losses, strict=True)))
    hull: list[tuple[float, float, int]] = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            continue
        while hull and point[0] == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    """Loss that is added for a unit of cost, from a to b: less than 0."""
    return (b[1] - a[1]) / (b[0] - a[0])


class _Relaxed:
    """The relaxed program of some tensors: steps along their hulls, the steepest first."""

    def __init__(self, hulls: Sequence[list[tuple[float, float, int]]]):
        self.first = [hull[0] for hull in hulls]
        steps = [
            (_slope(a, b), b[0] - a[0], b[1] - a[1], n, b[2])
            for n, hull in enumerate(hulls)
            for a, b in itertools.pairwise(hull)
        ]
        self.steps = sorted(steps)
        self.cost = sum(first[0] for first in self.first)
        self.loss = sum(first[1] for first in self.first)
        self._costs = np.cumsum([0.0, *(step[1] for step in self.steps)])
        self._losses = np.cumsum([0.0, *(step[2] for step in self.steps)])

    def fits(self, budget: float) -> bool:
        return bool(self.cost <= budget + 1e-12 * abs(budget))

    def least(self, budget: float) -> float:
        """The relaxed program's loss."""
        return self.loss + float(np.interp(budget - self.cost, self._costs, self._losses))

    def rounded(self, budget: float) -> tuple[list[int], float]:
        """A choice within the budget, steps taken as far as they fit, and what it loses."""
        ways = [first[2] for first in self.first]
        left, loss, stopped = budget - self.cost, self.loss, set[int]()
        for _, cost, gain, n, way in self.steps:
            if n in stopped or cost > left:
                stopped.add(n)
                continue
            ways[n], left, loss = way, left - cost, loss + gain
        return ways, loss
