"""Trellises of Ungerboeck's codes in one dimension, mirrored so that one table serves all states.

Numbers lie at (i + 1/2) step for whole i, dealt out in turn to the subsets D0, D1, D2, D3. A state
allows two of them, and which one is taken leads to the next state: even states allow D0 and D2,
odd ones D1 and D3, which are the same numbers with the other sign. So a code k means

    level(k) in an even state, -level(k) in an odd one,    level(k) about (2 k + 1/2) step

whose lowest bit tells the two subsets apart. States are linear in the lowest bits of the codes
before: state(t + 1) = A state(t) + B (k(t) mod 2) over GF(2), where A^period = 1. Hence

    state(t) = A^t sum over j < t of A^(-1 - j) B (k(j) mod 2)

and a prefix sum decodes a row. Every row begins in state 0.

G. Ungerboeck, Channel coding with multilevel/phase signals, 1982; T. Fischer and M. Wang,
Entropy-constrained trellis-coded quantization, 1992.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

# Parity checks h0, h1 of the code, the lowest bit being D^0, by the number of states.
CHECKS: dict[int, tuple[int, int]] = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}


@dataclass(frozen=True, eq=False)
class Trellis:
    """A trellis.

    Attributes:
      following: int64[states, 2], the state after a code that is even, and odd.
    """

    following: np.ndarray

    @property
    def states(self) -> int:
        """Number of states."""
        return len(self.following)

    @cached_property
    def previous(self) -> np.ndarray:
        """int64[states, 2], the two states that lead to each."""
        return np.stack([np.nonzero(self.following == s)[0] for s in range(self.states)])

    @cached_property
    def parities(self) -> np.ndarray:
        """int64[states, 2], the lowest bit of the code that leads from each of `previous`."""
        return np.stack([np.nonzero(self.following == s)[1] for s in range(self.states)])

    @cached_property
    def powers(self) -> np.ndarray:
        """int64[period, states], A^t of every state."""
        powers = [np.arange(self.states)]
        while len(powers) == 1 or (powers[-1] != powers[0]).any():
            powers.append(self.following[powers[-1], 0])
        return np.stack(powers[:-1])

    @cached_property
    def contributions(self) -> np.ndarray:
        """uint8[period], A^(-1 - t) B: what an odd code at place t adds to the sum."""
        period = len(self.powers)
        odd = self.following[0, 1]
        return np.array([self.powers[(-1 - t) % period, odd] for t in range(period)], np.uint8)

    @cached_property
    def masks(self) -> np.ndarray:
        """uint8[period]: the lowest bit of state t is the parity of the sum's bits under it."""
        bits = 1 << np.arange(self.states.bit_length() - 1)
        return ((self.powers[:, bits] & 1) @ bits).astype(np.uint8)


@lru_cache
def trellis(states: int) -> Trellis:
    """The trellis of a number of states.

    Example:
      >>> trellis(8).following[:2].tolist(), len(trellis(8).powers)
      ([[0, 2], [7, 5]], 4)
    """
    h0, h1 = CHECKS[states]
    length = states.bit_length() - 1
    state, odd = np.arange(states)[:, None], np.arange(2)
    lowest = state & 1
    branch = odd ^ lowest
    following = np.zeros((states, 2), np.int64)
    for i in range(length):
        shifted = state >> i + 1 & 1
        checks = (h0 >> i + 1 & lowest) ^ (h1 >> i + 1 & branch)
        following |= (shifted ^ checks) << i
    return Trellis(following)
