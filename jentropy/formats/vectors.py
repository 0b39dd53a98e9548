"""Vectors of eight that lattice E8 allows.

`WORDS` are the sixteen words of the extended Hamming code, of which no two differ in fewer than
four places; E8 is all that is congruent to one of them modulo 2, up to its scale.

`ball()` is a codebook of 2^16 vectors of E8 moved by a quarter (Tseng et al., QuIP#: even better
LLM quantization with Hadamard incoherence and lattice codebooks, 2024): all 227 magnitudes of
half-odd vectors with an even sum and a square of up to 10, and the first 29 of square 12 in
lexicographic order. Of a code, bits 0 to 7 are the place of the magnitudes, sorted by square and
then lexicographically; bits 8 to 14 the signs of the first seven numbers, the eighth being what
makes the sum even; bit 15 says whether 1/4 is subtracted from all of them or added.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np

DIMENSIONS = 8


@lru_cache
def words() -> np.ndarray:
    """uint8[16, 8]: bits of every word, the lowest four being those of its number.

    Example:
      >>> words()[[0, 1, 15]].sum(axis=1).tolist()
      [0, 4, 8]
    """
    data = np.arange(16)[:, None] >> np.arange(4) & 1
    checks = data @ (1 - np.eye(4, dtype=np.int64)) & 1
    return np.concatenate([data, checks], axis=1).astype(np.uint8)


@lru_cache
def magnitudes() -> np.ndarray:
    """float32[256, 8]: magnitudes of the ball.

    Example:
      >>> magnitudes()[[0, 226, 227]].__pow__(2).sum(axis=1).tolist()
      [2.0, 10.0, 12.0]
    """
    halves = np.array(list(product((0.5, 1.5, 2.5), repeat=DIMENSIONS)))
    squares = (halves**2).sum(axis=1)
    order = np.argsort(squares, kind="stable")
    return halves[order[:256]].astype(np.float32)


@lru_cache
def is_negated_oddly() -> np.ndarray:
    """bool[256]: whether an odd number of signs makes the sum of magnitudes even."""
    return magnitudes().sum(axis=1) % 2 == 1


@lru_cache
def ball() -> np.ndarray:
    """float32[2^16, 8].

    Example:
      >>> ball().shape, ball()[[0, 1 << 8]].tolist()[1][:2], float(ball().max())
      ((65536, 8), [-0.25, 0.75], 2.75)
    """
    code = np.arange(1 << 16)
    place, signs = code & 255, code[:, None] >> np.arange(8, 15) & 1
    last = (signs.sum(axis=1) + is_negated_oddly()[place]) & 1
    signs = np.concatenate([signs, last[:, None]], axis=1)
    shift = np.where(code >> 15 & 1, -0.25, 0.25).astype(np.float32)
    return magnitudes()[place] * (1 - 2 * signs).astype(np.float32) + shift[:, None]
