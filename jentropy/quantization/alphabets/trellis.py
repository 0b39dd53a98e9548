"""Entropy-coded trellis: numbers half a step off zero, found by Viterbi, coded with one table.

With independent inputs a weight needs .078 bit more than D(R) with 8 states, .05 with 64, .04 with
256. With a Hessian every survivor of the search keeps the errors that it made, and so is rounded
sequentially: what QTIP does block by block (A. Tseng et al., QTIP: quantization with trellises and
incoherence processing, 2024), with an entropy coder in the stead of its fixed rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, UInt8

from jentropy.errors import UnsupportedError
from jentropy.formats import FP32, UINT8, Format, SideArray, Step, codes_of
from jentropy.formats.decoders.even_levels import extended
from jentropy.formats.decoders.trellis import is_odd
from jentropy.quantization.feedback import feedback_of
from jentropy.quantization.problem import Problem, Solution

from .alphabet import Alphabet
from .viterbi import best_paths

CODES = 256
LEVELS = 16  # around zero, which are means of what they stand for
ZERO = CODES // 2
PASSES = 3  # of search, each with the code lengths and levels that the one before found
SEEN = 24  # weights that a mean is taken of, at the least
UNSEEN = 0.02  # how often a code was seen that was not
# Loss that a bit is worth, of the square of a step: 2 ln 2 times what a trellis loses of it.
BIT = 2 * float(np.log(2)) * 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Trellis(Alphabet):
    """Numbers of a trellis.

    Attributes:
      states: of the trellis; each doubling gains about .009 bit and takes twice the time.
      step: between neighbouring numbers, of the root mean square of the weights, at factor 1.
      damping: of the Hessian.
    """

    states: int = 8
    step: float = 0.5
    damping: float = 0.01

    def solve(self, problem: Problem) -> Solution:
        """Codes and levels."""
        refuse_masks(problem, self)
        weight = problem.weight
        step = self.step * problem.factor * root_mean_square(weight)
        feedback = feedback_of(problem.statistics, self.damping)
        code, levels = _solved(weight, step, feedback, states=self.states)
        own = SideArray(name="levels", element=FP32, shape=levels.shape)
        decoder = Step(name="trellis", settings=(("states", self.states),), arrays=(own,))
        number_format = Format(name=f"TRELLIS{self.states}", element=UINT8, decoder=decoder)
        return Solution(
            number_format=number_format, codes={"code": code, "levels": codes_of(levels)}
        )


def refuse_masks(problem: Problem, alphabet: Alphabet) -> None:
    """Raises UnsupportedError for pruned weights, of which an alphabet of vectors has no zeros."""
    if problem.mask is not None:
        raise UnsupportedError(
            f"pruning before {type(alphabet).__name__}",
            expected="an alphabet of single numbers",
            found="one of vectors, which need not have a zero",
        )


@jax.jit
def root_mean_square(weight: Float32[Array, "rows columns"]) -> Float32[Array, ""]:
    """Of all weights; 1 where all are 0."""
    square = jnp.square(weight).mean()
    return jnp.where(square > 0, jnp.sqrt(square), 1)


def code_lengths(codes: UInt8[Array, "rows columns"]) -> Float32[Array, " codes"]:
    """Bits of every code, by how often it occurs."""
    counts = jnp.bincount(codes.reshape(-1).astype(jnp.int32), length=CODES) + UNSEEN
    return jnp.log2(counts.sum()) - jnp.log2(counts)


def even_levels(step: Float32[Array, ""]) -> Float32[Array, " levels"]:
    """The middle levels, all alike."""
    return (2 * (jnp.arange(LEVELS) - LEVELS // 2) + 0.5) * step


def means(
    numbers: Float32[Array, "rows columns"],
    codes: UInt8[Array, "rows columns"],
    usual: Float32[Array, " levels"],
) -> Float32[Array, " levels"]:
    """What the middle codes stand for in the mean; the usual level where too few are there, and of
    the first and last two, which all others beyond follow."""
    place = codes.reshape(-1).astype(jnp.int32) - (ZERO - LEVELS // 2)
    place = jnp.where((place >= 0) & (place < LEVELS), place, LEVELS)
    count = jnp.bincount(place, length=LEVELS + 1)[:LEVELS]
    total = jnp.zeros(LEVELS + 1).at[place].add(numbers.reshape(-1))[:LEVELS]
    inner = (jnp.arange(LEVELS) > 1) & (jnp.arange(LEVELS) < LEVELS - 2)
    return jnp.where(inner & (count >= SEEN), total / jnp.maximum(count, 1), usual)


@partial(jax.jit, static_argnames="states")
def _solved(
    weight: Float32[Array, "rows columns"],
    step: Float32[Array, ""],
    feedback: Float32[Array, "columns columns"] | None,
    *,
    states: int,
) -> tuple[UInt8[Array, "rows columns"], Float32[Array, " levels"]]:
    """Codes and levels of a matrix."""
    usual = even_levels(step)
    loss = BIT * jnp.square(step)
    if feedback is not None:
        loss = loss * jnp.exp(-2 * jnp.log(jnp.diagonal(feedback)).mean())
    nearest = ZERO + jnp.round(weight / (2 * step) - 0.25)
    bits = code_lengths(jnp.clip(nearest, 0, CODES - 1).astype(jnp.uint8))

    def turn(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, levels, bits = state
        table = extended(levels, 8)
        codes = best_paths(weight, table, step, bits, loss, feedback, states=states)
        if feedback is None:
            mirrored = jnp.where(is_odd(codes, states), -weight, weight)
            levels = means(mirrored, codes, usual)
        return codes, levels, code_lengths(codes)

    first = jnp.zeros(weight.shape, jnp.uint8), usual, bits
    codes, levels, _ = lax.fori_loop(0, PASSES, turn, first)
    return codes, levels
