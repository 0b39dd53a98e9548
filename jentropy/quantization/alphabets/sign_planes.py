"""Sums of signs with scales of their own: binarised weights.

Salient columns are binarised twice, the second time what the first one left; in others the sign has
one of two magnitudes, by whether a weight is large (W. Huang et al., BiLLM: pushing the limit of
post-training quantization for LLMs, 2024). Or all weights are a sum of two binary numbers with
scales of a group (H. Chen et al., DB-LLM: accurate dual-binarization for efficient LLMs, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from jentropy.formats import BF16, Format, SideArray, Step, codes_of, raw_element
from jentropy.quantization.feedback import feedback_of
from jentropy.quantization.problem import Problem, Solution

from .alphabet import Alphabet
from .by_vectors import by_vectors, laid
from .integer import integer_element
from .trellis import refuse_masks

SPLITS = (0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.4)  # of the mean magnitude, where it may be parted
ROUNDS = 6  # of codes and scales in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class SignPlanes(Alphabet):
    """What binarised matrices have in common.

    Attributes:
      block: columns that share scales, for each row.
      damping: of the Hessian.
    """

    block: int = 128
    damping: float = 0.01

    def _solution(self, problem: Problem, name: str, planes: int, **settings: Any) -> Solution:
        refuse_masks(problem, self)
        weight = problem.weight
        feedback = feedback_of(problem.statistics, self.damping)
        block = min(self.block, weight.shape[1])
        code, scales, groups = _SOLVED[name](weight, feedback, block=block, **settings)
        arrays = (
            SideArray(name="scales", element=BF16, shape=scales.shape),
            SideArray(name="groups", element=raw_element("uint16"), shape=groups.shape),
        )
        number_format = Format(
            name=name,
            element=integer_element(planes, 0),
            decoder=Step(name="planes", arrays=arrays),
        )
        codes = {"code": code, "scales": codes_of(scales.astype(jnp.bfloat16)), "groups": groups}
        return Solution(number_format=number_format, codes=codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Salient(SignPlanes):
    """BiLLM's: a bit of each weight, and another one that says which of two magnitudes it has.

    Attributes:
      share: of the columns of a block that are salient.
    """

    share: float = 0.06

    def solve(self, problem: Problem) -> Solution:
        """Codes, scales, and which columns are salient. A factor changes nothing."""
        return self._solution(problem, "BINARY_SALIENT", 2, share=self.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dual(SignPlanes):
    """DB-LLM's: a(1) b(1) + a(2) b(2), b being 0 or 1."""

    block: int = 64

    def solve(self, problem: Problem) -> Solution:
        """Codes and scales. A factor changes nothing."""
        return self._solution(problem, "BINARY_DUAL", 3)


def _kept(scales: Array) -> Array:
    return scales.astype(jnp.bfloat16).astype(jnp.float32)


def _mean(numbers: Array, where: Array) -> Array:
    """Of each row, [rows, 1]."""
    count = where.sum(1, keepdims=True)
    return jnp.where(where, numbers, 0).sum(1, keepdims=True) / jnp.maximum(count, 1)


@partial(jax.jit, static_argnames=("block", "share"))
def _salient(
    weight: Float32[Array, "rows columns"],
    feedback: Float32[Array, "columns columns"] | None,
    *,
    block: int,
    share: float,
) -> tuple[UInt8[Array, "rows columns"], Float32[Array, "planes rows groups"], Array]:
    rows, columns = weight.shape
    count = max(1, round(share * block))

    def search(part: Array, weights: Array, group: Array) -> tuple[dict[str, Array], Array]:
        del group
        real = (weights > 0)[None, :]
        loss = jnp.square(part).sum(0) * weights
        is_salient = (jnp.argsort(jnp.argsort(-loss)) < count)[None, :] & real
        sign = part >= 0
        # Twice: the mean magnitude, and then that of what is left.
        size = jnp.abs(part)
        first = _mean(size, is_salient)
        second = _mean(jnp.abs(size - first), is_salient)
        larger = size >= first
        twice = _kept(jnp.stack([first, second]))

        # Once, with one of two magnitudes.
        ordinary = ~is_salient & real

        def parted(split: float) -> tuple[Array, Array, Array]:
            large = size >= split * _mean(size, ordinary)
            high, low = _mean(size, ordinary & large), _mean(size, ordinary & ~large)
            scales = _kept(jnp.stack([(high + low) / 2, (high - low) / 2]))
            number = scales[0] + jnp.where(large, scales[1], -scales[1])
            error = jnp.where(ordinary, jnp.square(number - size) * weights[None, :], 0)
            return error.sum(), large, scales

        tried = [parted(split) for split in SPLITS]
        best = jnp.stack([one[0] for one in tried]).argmin()
        large, once = (jnp.stack([one[i] for one in tried])[best] for i in (1, 2))

        more = jnp.where(is_salient, larger, large)
        scales = jnp.where(is_salient, twice, once)
        number = scales[0] + jnp.where(more, scales[1], -scales[1])
        number = jnp.where(sign, number, -number)
        # Of a negative number the second plane is turned too: -(a + b) = -a - b.
        code = sign.astype(jnp.uint8) | (more == sign).astype(jnp.uint8) << 1
        found = {
            "code": code,
            "scales": jnp.stack([once, twice], -1)[:, :, 0],
            "salient": is_salient[0],
        }
        return found, number

    found = by_vectors(weight, feedback, search, block)
    scales = found["scales"].transpose(1, 2, 0, 3).reshape(2, rows, -1)
    place = jnp.arange(columns)
    groups = 2 * (place // block) + found["salient"].reshape(-1)[:columns]
    return laid(found["code"], columns), scales, groups.astype(jnp.uint16)


@partial(jax.jit, static_argnames="block")
def _dual(
    weight: Float32[Array, "rows columns"],
    feedback: Float32[Array, "columns columns"] | None,
    *,
    block: int,
) -> tuple[UInt8[Array, "rows columns"], Float32[Array, "planes rows groups"], Array]:
    columns = weight.shape[1]
    ones = jnp.array([[0, 0], [1, 0], [0, 1], [1, 1]], jnp.float32)  # b of each code

    def search(part: Array, weights: Array, group: Array) -> tuple[dict[str, Array], Array]:
        del group

        def nearest(scales: Array) -> Array:
            levels = jnp.einsum("pr,cp->rc", scales, ones)
            return jnp.abs(part[:, :, None] - levels[:, None]).argmin(2)

        def turn(_: Array, scales: Array) -> Array:
            b = ones[nearest(scales)]
            heavy = b * weights[None, :, None]
            normal = jnp.einsum("rkp,rkq->rpq", heavy, b) + 1e-6 * weights.mean() * jnp.eye(2)
            right = jnp.einsum("rkp,rk->rp", heavy, part)
            det = normal[:, 0, 0] * normal[:, 1, 1] - normal[:, 0, 1] ** 2
            one = normal[:, 1, 1] * right[:, 0] - normal[:, 0, 1] * right[:, 1]
            two = normal[:, 0, 0] * right[:, 1] - normal[:, 0, 1] * right[:, 0]
            return jnp.stack([one, two]) / jnp.where(det == 0, 1, det)

        step = jnp.abs(part).max(1) / 1.5
        scales = _kept(jax.lax.fori_loop(0, ROUNDS, turn, jnp.stack([2 * step, -step]) / 2))
        code = nearest(scales)
        # a b = (a / 2) s + a / 2: the halves that stay are a third plane, all of ones.
        planes = jnp.stack([scales[0] / 2, scales[1] / 2, _kept((scales[0] + scales[1]) / 2)])
        signs = 2 * ones[code] - 1
        number = planes[0][:, None] * signs[..., 0] + planes[1][:, None] * signs[..., 1]
        found = {"code": (code | 4).astype(jnp.uint8), "scales": planes.T}
        return found, number + planes[2][:, None]

    found = by_vectors(weight, feedback, search, block)
    scales = found["scales"].transpose(2, 1, 0)
    groups = (jnp.arange(columns) // block).astype(jnp.uint16)
    return laid(found["code"], columns), scales, groups


_SOLVED = {"BINARY_SALIENT": _salient, "BINARY_DUAL": _dual}
