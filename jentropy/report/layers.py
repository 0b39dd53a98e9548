"""Shares of bits that are used, by layer and role."""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.entropy import EntropyReport
from jentropy.entropy.roles import NAMES

NORM = "norm"
NONE = -1  # share where a layer has no weight of a role


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A map of a source.

    Attributes:
      roles: rows.
      numbers: of layers: columns.
      shares: used, in thousandths, of each row and column; NONE where there is no weight.

    Example:
      >>> Layers(roles=["norm", "q"], numbers=[0, 1], shares=[[362, 357], [661, 657]]).ends
      (657, 661)
    """

    roles: list[str]
    numbers: list[int]
    shares: list[list[int]]

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the largest share of matrices: norms of few weights would hide the rest."""
        rows = dict(zip(self.roles, self.shares, strict=True))
        norms = rows.pop(NORM, [])
        known = [share for row in rows.values() or [norms] for share in row if share != NONE]
        return min(known, default=0), max(known, default=0)


def layers(report: EntropyReport) -> Layers | None:
    """The map of a report; None if no tensor's name tells of a layer.

    A share is that of the tensors' own entropies, weighted by their bits.

    Example:
      >>> import numpy as np, jentropy
      >>> layers(jentropy.analyze({"layers.3.q_proj": np.ones((4, 4), np.float16)}))
      Layers(roles=['q'], numbers=[3], shares=[[0]])
    """
    bits: dict[tuple[str, int], tuple[float, float]] = {}
    for tensor in report.tensors:
        role = tensor.role
        if role is None or role.layer is None:
            continue
        used, stored = bits.get((role.name, role.layer), (0.0, 0.0))
        used += tensor.weights * tensor.entropy_bits
        bits[role.name, role.layer] = used, stored + tensor.weights * tensor.allocated_bits
    if not bits:
        return None
    shares = {key: round(1000 * used / stored) for key, (used, stored) in bits.items() if stored}
    numbers = sorted({number for _, number in bits})
    roles = [name for name in NAMES if any(name == role for role, _ in bits)]
    grid = [[shares.get((role, number), NONE) for number in numbers] for role in roles]
    return Layers(roles=roles, numbers=numbers, shares=grid)
