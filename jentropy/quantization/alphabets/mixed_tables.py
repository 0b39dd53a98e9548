"""Each group of columns chooses one of several tables of numbers: BitMoD.

A small float has two zeros; the second one's code means another number, of which there are four:
one that fills a gap, or one beyond the largest, of either sign.

References:
  Chen et al. 2024, BitMoD, arXiv 2411.11745, section III.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from jentropy.errors import InputError
from jentropy.formats import BF16, FP16, Format, SideArray, Step, dequantizing, fitting, raw_element
from jentropy.formats.blocks import scale
from jentropy.formats.encoding import encode
from jentropy.quantization.problem import Problem, Solution

from .alphabet import Alphabet
from .integer import integer_element

BASIC = {3: (0.0, 1.0, 2.0, 4.0), 4: (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)}
SPECIAL = {3: (3.0, 6.0), 4: (5.0, 8.0)}  # fills a gap; is beyond


def tables_of(bits: int) -> np.ndarray:
    """BitMoD's tables, float32[4, 2^bits], each in order.

    Args:
      bits: 3 or 4.

    Example:
      >>> tables_of(3)[0].tolist()
      [-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    """
    both = sorted({*BASIC[bits], *(-x for x in BASIC[bits])})
    rows = [sorted((*both, sign * x)) for x in SPECIAL[bits] for sign in (1, -1)]
    return np.array(rows, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedTables(Alphabet):
    """BitMoD, to nearest.

    Raises:
      InputError: other than 3 or 4 bits.

    Example:
      >>> MixedTables(bits=3).group
      128
    """

    bits: int = 4
    group: int = 128

    def __post_init__(self) -> None:
        if self.bits not in BASIC:
            raise InputError("bits of BitMoD", expected="3 or 4", found=self.bits)

    def solve(self, problem: Problem) -> Solution:
        """Of each group the table, with its own scale, that loses least by E[x^2]."""
        tables = tables_of(self.bits)
        weight, power = problem.weight, problem.statistics.diagonal
        if problem.mask is not None:
            weight = weight * problem.mask.astype(weight.dtype)
        rows, columns = weight.shape
        choice_shape = rows, -(-columns // self.group)
        number_format = Format(
            name=f"BITMOD{self.bits}",
            element=integer_element(self.bits, 0),
            parameters=(scale(BF16, (1, self.group)),),
            decoder=Step(
                name="choices",
                settings=(("group", self.group),),
                arrays=(
                    SideArray(name="levels", element=FP16, shape=tables.shape),
                    SideArray(name="choice", element=raw_element("uint8"), shape=choice_shape),
                ),
            ),
        )
        solved = _solved(
            weight, power, jnp.asarray(tables), jnp.float32(problem.factor), number_format
        )
        code, scales, choice = solved
        levels = jnp.asarray(tables.astype(np.float16).view(np.uint16))
        codes = {"code": code, "scale": scales, "levels": levels, "choice": choice}
        return Solution(number_format=number_format, codes=codes)


@partial(jax.jit, static_argnames="number_format")
def _solved(
    weight: Float32[Array, "rows columns"],
    power: Float32[Array, " columns"],
    tables: Float32[Array, "tables levels"],
    factor: Float32[Array, ""],
    number_format: Format,
) -> tuple[Array, Array, Array]:
    parameter = number_format.parameter("scale")
    blocks = parameter.blocks(2)
    highest = fitting.reduced(weight, blocks, jnp.max)
    lowest = fitting.reduced(weight, blocks, jnp.min)

    def of_table(table: Float32[Array, " levels"]) -> tuple[Array, Array, Array]:
        wanted = factor * jnp.maximum(highest / table[-1], lowest / table[0])
        codes = encode(jnp.maximum(wanted, 1e-30), BF16)
        each = dequantizing.spread(BF16.decode(codes), parameter, weight.shape, None, None)
        places: Int32[Array, "rows columns"]
        between = (table[1:] + table[:-1]) / 2
        places = jnp.searchsorted(between, weight / each, method="scan_unrolled").astype(jnp.int32)
        lost = jnp.square(table[places] * each - weight) * power[None, :]
        return places, codes, fitting.reduced(lost, blocks, jnp.sum)

    found = [of_table(table) for table in tables]
    choice = jnp.argmin(jnp.stack([error for _, _, error in found]), axis=0)
    by_weight = dequantizing.spread(choice, parameter, weight.shape, None, None)
    by_weight = jnp.broadcast_to(by_weight, weight.shape)
    code = jnp.choose(by_weight, [places for places, _, _ in found], mode="clip")
    scales = jnp.choose(choice, [codes for _, codes, _ in found], mode="clip")
    return code.astype(jnp.uint8), scales, choice.astype(jnp.uint8)
