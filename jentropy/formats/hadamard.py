"""Hadamard matrices: of powers of two, and of those times an order that Paley's constructions have.

For a prime q, Paley's first construction has order q + 1 where q mod 4 = 3, the second order
2 (q + 1) where q mod 4 = 1. A block 2^a m is the Kronecker product of Sylvester's matrix of 2^a
and one of order m of `BASES`, the latter's index moving slower.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from .step import namespace

# Orders that are no powers of two, and the prime that makes each.
BASES: dict[int, int] = {12: 11, 20: 19, 28: 13, 36: 17, 44: 43, 60: 59, 76: 37, 84: 83, 108: 107}
LARGEST = 1 << 16  # block


@lru_cache
def base(order: int) -> np.ndarray:
    """float32[order, order] of 1 and -1, a row being orthogonal to all others.

    Args:
      order: 1, or one of `BASES`.

    Example:
      >>> bool((base(12) @ base(12).T == 12 * np.eye(12)).all())
      True
    """
    if order == 1:
        return np.ones((1, 1), np.float32)
    q = BASES[order]
    squares = {i * i % q for i in range(1, q)}
    character = np.array([0] + [1 if i in squares else -1 for i in range(1, q)])
    jacobsthal = character[(np.arange(q)[:, None] - np.arange(q)) % q]
    sign = -1 if q % 4 == 3 else 1
    core = np.block([[np.zeros((1, 1)), np.ones((1, q))], [sign * np.ones((q, 1)), jacobsthal]])
    if q % 4 == 3:
        return (core + np.eye(order)).astype(np.float32)
    one, two = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
    return (np.kron(core, one) + np.kron(np.eye(q + 1), two)).astype(np.float32)


def base_of(block: int) -> int:
    """What a block is times a power of two: a key of `BASES` or 1; 0 where there is none."""
    if not 0 < block <= LARGEST:
        return 0
    return next((m for m in (1, *BASES) if block % m == 0 and (block // m).bit_count() == 1), 0)


def is_order(block: int) -> bool:
    """Whether there is a rotation of blocks of a size.

    Example:
      >>> is_order(768), is_order(100)
      (True, False)
    """
    return base_of(block) > 0


def largest_block(length: int) -> int:
    """The largest block that divides a length.

    Example:
      >>> [largest_block(n) for n in (4096, 768, 14336, 11008, 100, 7)]
      [4096, 768, 14336, 256, 20, 1]
    """
    two = math.gcd(length, LARGEST)
    odd = [m * p for m in (1, *BASES) for p in _powers(two) if length % (m * p) == 0]
    return max(block for block in odd if is_order(block))


def _powers(largest: int) -> list[int]:
    return [1 << i for i in range(largest.bit_length())]


def rotated(lines: Any, block: int, *, back: bool = False) -> Any:
    """Lines times the orthogonal matrix of a block, every block of them by itself.

    Args:
      lines: float32 [..., n], NumPy or JAX; `block` divides n.
      block: `is_order(block)`.
      back: by the transposed matrix, which is the inverse.

    Returns:
      float32 of that shape, of the same kind.

    Example:
      >>> rotated(np.float32([[3, 1, 0, 0]]), 4).tolist()
      [[2.0, 1.0, 2.0, 1.0]]
    """
    xp, order = namespace(lines), base_of(block)
    shape, power = lines.shape, block // order
    step = 1
    work = lines.reshape(-1, power)
    while step < power:
        pairs = work.reshape(-1, 2, step)
        work = xp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        step *= 2
    if order > 1:
        matrix = base(order).T if back else base(order)
        parts = work.reshape(-1, order, power)
        work = sum(parts[:, i, None] * row[None, :, None] for i, row in enumerate(matrix))
    return (work * np.float32(1 / math.sqrt(block))).reshape(shape)
