"""A factor per column, which outliers of the inputs ask for: W' = W s, x' = x / s.

Activation-aware weight quantization (Lin et al., AWQ, 2024) takes s = largest |x|^a and tries
exponents; SmoothQuant (Xiao et al., 2023) takes s = largest |x|^a / largest |w|^(1 - a).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32

from jentropy.formats import INT4_GROUP, Format, Step, dequantize, quantize
from jentropy.quantization import distortions
from jentropy.quantization.statistics import Statistics

from . import kept
from .transform import Transform, Transformed

LEAST = 1e-5  # of a channel's largest input, relative to the largest of all


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnScales(Transform):
    """A way to find factors of columns."""

    @abc.abstractmethod
    def factors(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> Float32[Array, " columns"]:
        """What columns of the weight are multiplied by, all above 0."""

    def forward(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        key: Any,
        prefix: str,
    ) -> Transformed:
        """See `Transform`."""
        own, codes, scale = kept.numbers(prefix + "scale", 1 / self.factors(weight, statistics))
        step = Step(name="columns", arrays=(own,))
        return Transformed(
            weight=weight / scale[None, :],
            statistics=scaled(statistics, scale),
            step=step,
            codes={own.name: codes},
        )


def scaled(statistics: Statistics, scale: Float32[Array, " columns"]) -> Statistics:
    """Of inputs that are multiplied by a number each."""
    hessian = statistics.hessian
    hessian = jnp.diag(scale**2) if hessian is None else hessian * scale[:, None] * scale[None, :]
    low, high = statistics.low * scale, statistics.high * scale
    return replace(statistics, hessian=hessian, low=low, high=high)


def balanced(factors: Float32[Array, " columns"]) -> Float32[Array, " columns"]:
    """Factors whose largest and least are inverse to one another."""
    return factors / jnp.sqrt(factors.max() * factors.min())


def _largest(statistics: Statistics) -> Float32[Array, " columns"]:
    """Of each input, none of them nothing."""
    largest = jnp.asarray(statistics.largest)
    return jnp.maximum(largest, LEAST * jnp.maximum(largest.max(), 1e-30))


@dataclass(frozen=True, slots=True, kw_only=True)
class Smooth(ColumnScales):
    """SmoothQuant's factors.

    Attributes:
      exponent: how much of what is hard to round is moved from inputs to weights.
    """

    exponent: float = 0.5

    def factors(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> Float32[Array, " columns"]:
        """See `ColumnScales`."""
        own = jnp.abs(weight).max(0)
        own = jnp.maximum(own, LEAST * jnp.maximum(own.max(), 1e-30))
        return _largest(statistics) ** self.exponent / own ** (1 - self.exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched(ColumnScales):
    """AWQ's factors: of those tried, the ones whose rounded weights lose least.

    Attributes:
      number_format: what weights are rounded to as exponents are tried.
      tries: exponents, evenly from 0 on, below 1.
    """

    number_format: Format = INT4_GROUP
    tries: int = 10

    def factors(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> Float32[Array, " columns"]:
        """See `ColumnScales`."""
        found = []
        for i in range(self.tries):
            factors = balanced(_largest(statistics) ** (i / self.tries))
            codes = quantize(weight * factors[None, :], self.number_format)
            decoded = dequantize(self.number_format, codes) / factors[None, :]
            loss = float(distortions.weighted(weight, decoded, statistics))
            found.append((loss, i, factors))
        return min(found, key=lambda one: one[:2])[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capped(ColumnScales):
    """Outlier Suppression+'s factors (Wei et al., 2023): inputs whose ends lie beyond a bound, and
    only those, are divided by what brings them to it. Of the bounds tried the one is taken with
    which rounded inputs and weights lose least.

    Attributes:
      number_format: what weights are rounded to as bounds are tried.
      levels: numbers that inputs are rounded to, evenly between their ends.
      tries: bounds, halves of the largest end and so on down.
    """

    number_format: Format = INT4_GROUP
    levels: int = 256
    tries: int = 8

    def factors(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> Float32[Array, " columns"]:
        """See `ColumnScales`."""
        largest, found = _largest(statistics), []
        power = jnp.square(weight).sum(0)
        for i in range(self.tries):
            bound = largest.max() * 2.0 ** (-i)
            factors = jnp.maximum(1.0, largest / bound)
            codes = quantize(weight * factors[None, :], self.number_format)
            decoded = dequantize(self.number_format, codes) / factors[None, :]
            step = 2 * (largest / factors).max() / self.levels
            inputs = jnp.vdot(power, jnp.square(step * factors) / 12)
            loss = distortions.weighted(weight, decoded, statistics) + inputs
            found.append((float(loss), i, factors))
        return min(found, key=lambda one: one[:2])[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced(ColumnScales):
    """Dual scales, after D2Quant (arXiv 2602.02546): rows and columns are divided by their root
    mean squares in turn, until neither has outliers; the scales of rows are left to the alphabet.
    The paper has column scales for down projections alone, which the layer before takes up, and
    moves the mean in norms; here any matrix keeps its own, and norms stay.

    Attributes:
      rounds: of rows and columns.
      exponent: how much of it is done; 1: all.
    """

    rounds: int = 4
    exponent: float = 0.5

    def factors(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> Float32[Array, " columns"]:
        """See `ColumnScales`."""
        square = jnp.square(weight)
        rows, columns = jnp.ones(len(square)), jnp.ones(square.shape[1])
        tiny = 1e-30
        for _ in range(self.rounds):
            rows = jnp.maximum((square / columns[None, :]).mean(1), tiny)
            columns = jnp.maximum((square / rows[:, None]).mean(0), LEAST**2)
        return columns ** (-self.exponent / 2)
