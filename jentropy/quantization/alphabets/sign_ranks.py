"""Signs times magnitudes of low rank, of what is left again and again: BitStack's blocks.

X. Wang et al., BitStack: any-size compression of large language models in variable memory
environments, 2024. Columns are weighed by the root of E[x^2] while blocks are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from jentropy.formats import BF16, Format, SideArray, Step, codes_of
from jentropy.quantization.problem import Problem, Solution
from jentropy.quantization.transforms.low_rank import closest

from .alphabet import Alphabet
from .integer import integer_element
from .trellis import refuse_masks


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRanks(Alphabet):
    """Blocks of BitStack's.

    Attributes:
      blocks: up to 8; about a bit of each weight each.
      rank: of a block's magnitudes.
    """

    blocks: int = 3
    rank: int = 4

    def solve(self, problem: Problem) -> Solution:
        """Codes and factors. A factor changes nothing."""
        refuse_masks(problem, self)
        weight, power = problem.weight, problem.statistics.diagonal
        power = jnp.sqrt(jnp.maximum(power, 1e-6 * power.mean() + 1e-30))
        code, left, right = _solved(
            weight, power, problem.drawn(), blocks=self.blocks, rank=min(self.rank, *weight.shape)
        )
        arrays = (
            SideArray(name="left", element=BF16, shape=left.shape),
            SideArray(name="right", element=BF16, shape=right.shape),
        )
        number_format = Format(
            name=f"SIGN_RANKS{self.blocks}",
            element=integer_element(max(2, self.blocks), 0),
            decoder=Step(name="sign_ranks", arrays=arrays),
        )
        codes = {
            "code": code,
            "left": codes_of(left.astype(jnp.bfloat16)),
            "right": codes_of(right.astype(jnp.bfloat16)),
        }
        return Solution(number_format=number_format, codes=codes)


@partial(jax.jit, static_argnames=("blocks", "rank"))
def _solved(
    weight: Float32[Array, "rows columns"],
    power: Float32[Array, " columns"],
    key: Any,
    *,
    blocks: int,
    rank: int,
) -> tuple[
    UInt8[Array, "rows columns"],
    Float32[Array, "blocks rows rank"],
    Float32[Array, "blocks rank columns"],
]:
    residual, code, factors = weight, jnp.zeros(weight.shape, jnp.uint8), []
    for block, own in enumerate(jax.random.split(key, blocks)):
        positive = residual >= 0
        left, right = closest(jnp.abs(residual) * power[None, :], own, rank=rank)
        right = right / power[None, :]
        left, right = (f.astype(jnp.bfloat16).astype(jnp.float32) for f in (left, right))
        size = jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
        residual = residual - jnp.where(positive, size, -size)
        code = code | positive.astype(jnp.uint8) << block
        factors.append((left, right))
    left, right = (jnp.stack(each) for each in zip(*factors, strict=True))
    return code, left, right
