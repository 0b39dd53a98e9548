"""Lattice E8, entropy coded: half a bit of each weight says which of its cosets a vector is of.

A. Tseng et al., QuIP#: even better LLM quantization with Hadamard incoherence and lattice
codebooks, 2024, has the lattice; codes are found here by what they lose and what they take.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from jentropy.formats import FP32, UINT8, Format, SideArray, Step, codes_of, raw_element
from jentropy.formats.decoders.even_levels import extended
from jentropy.formats.vectors import DIMENSIONS, words
from jentropy.quantization.feedback import feedback_of
from jentropy.quantization.problem import Problem, Solution

from .alphabet import Alphabet
from .by_vectors import by_vectors, laid
from .trellis import (
    BIT,
    CODES,
    PASSES,
    ZERO,
    code_lengths,
    even_levels,
    means,
    refuse_masks,
    root_mean_square,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class E8(Alphabet):
    """Points of E8, moved by half a step.

    Attributes:
      step: between neighbouring numbers, of the root mean square of the weights, at factor 1.
      damping: of the Hessian.
    """

    step: float = 0.5
    damping: float = 0.01

    def solve(self, problem: Problem) -> Solution:
        """Codes, words and levels."""
        refuse_masks(problem, self)
        weight = problem.weight
        step = self.step * problem.factor * root_mean_square(weight)
        feedback = feedback_of(problem.statistics, self.damping)
        code, word, levels = _solved(weight, step, feedback)
        arrays = (
            SideArray(name="levels", element=FP32, shape=levels.shape),
            SideArray(name="words", element=raw_element("uint8"), shape=word.shape),
        )
        number_format = Format(name="E8", element=UINT8, decoder=Step(name="e8", arrays=arrays))
        codes = {"code": code, "levels": codes_of(levels), "words": word}
        return Solution(number_format=number_format, codes=codes)


@jax.jit
def _solved(
    weight: Float32[Array, "rows columns"],
    step: Float32[Array, ""],
    feedback: Float32[Array, "columns columns"] | None,
) -> tuple[UInt8[Array, "rows columns"], UInt8[Array, "rows vectors"], Float32[Array, " levels"]]:
    columns = weight.shape[1]
    bits_of_words = jnp.asarray(words(), jnp.int32)
    usual = levels = even_levels(step)
    loss = BIT * jnp.square(step)
    if feedback is not None:
        loss = loss * jnp.exp(-2 * jnp.log(jnp.diagonal(feedback)).mean())
    nearest = ZERO + jnp.round(weight / (2 * step) - 0.25)
    bits = code_lengths(jnp.clip(nearest, 0, CODES - 1).astype(jnp.uint8))
    for _ in range(PASSES):
        table = extended(levels, 8)

        def search(part: Array, weights: Array, group: Array) -> tuple[dict[str, Array], Array]:
            del group
            found = [_best(part * sign, weights, table, step, bits, loss) for sign in (1, -1)]  # noqa: B023
            costs, codes = (jnp.stack(each, -1) for each in zip(*found, strict=True))
            by_word = jnp.einsum("rdk,wdk->rw", costs, jax.nn.one_hot(bits_of_words, 2))
            word = by_word.argmin(1)
            odd = bits_of_words[word]
            code = jnp.where(odd == 1, codes[..., 1], codes[..., 0])
            numbers = jnp.where(odd == 1, -1, 1) * table[code]  # noqa: B023
            return {"code": code.astype(jnp.uint8), "word": word.astype(jnp.uint8)}, numbers

        found = by_vectors(weight, feedback, search, DIMENSIONS)
        code, word = laid(found["code"], columns), found["word"].T
        bits = code_lengths(code)
        if feedback is None:
            odd = bits_of_words[word.astype(jnp.int32)].reshape(len(weight), -1)[:, :columns]
            levels = means(jnp.where(odd == 1, -weight, weight), code, usual)
    return code, word, levels


def _best(
    targets: Array, weights: Array, table: Array, step: Array, bits: Array, loss: Array
) -> tuple[Array, Array]:
    """Cost and code of the number that costs least, or its inner neighbour."""
    nearest = ZERO + jnp.round(targets / (2 * step) - 0.25).astype(jnp.int32)
    best = None
    for code in (nearest, nearest - jnp.sign(nearest - ZERO)):
        code = jnp.clip(code, 0, CODES - 1)
        cost = jnp.square(table[code] - targets) * weights[None, :] + loss * bits[code]
        cost = jnp.where(weights[None, :] > 0, cost, 0)
        if best is None:
            best = cost, code
        else:
            best = (
                jnp.minimum(best[0], cost),
                jnp.where(cost < best[0], code, best[1]),
            )
    assert best is not None
    return best
