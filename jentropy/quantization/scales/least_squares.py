"""Scales by least squares: of trial scales codes are taken, and of these the scale that fits best.

Of every block the best pair by the error weighted by E[x^2] stays; K-quants are fitted so. Without
an offset the number of the largest magnitude, whatever its sign, is brought near to the element's
lowest, of which there is one more: its scale is negative if that number is positive. With an offset
scale and offset are the line that lies closest. What scales share is then such that the largest of
them has the largest code.

References:
  ggml, `make_qx_quants` and `make_qkx3_quants` (ggml-quants.c), 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt

from jentropy.errors import UnsupportedError
from jentropy.formats import WHOLE, Format, Parameter, Role
from jentropy.formats.encoding import encode, limits_of
from jentropy.formats.fitting import SCALES, of_weights
from jentropy.quantization.statistics import Statistics

from .scales import Scales

TRIALS = tuple(round(-0.9 + 0.1 * i, 1) for i in range(19))  # numbers that the range is widened by
Triple = tuple[Array, Array, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastSquares(Scales):
    """Of blocks of columns whose scales, and offsets, have scales of their own.

    Attributes:
      trials: how many numbers of the element the largest of a block is brought beyond the range.
    """

    trials: tuple[float, ...] = TRIALS

    def fit(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        number_format: Format,
        factor: float,
    ) -> dict[str, UInt[Array, "*grid"]]:
        """See `Scales`.

        Raises:
          UnsupportedError: other blocks, or scales without scales of their own.
        """
        parameters = of_weights(number_format, (*SCALES, Role.OFFSET))
        inner = {p.of for p in number_format.parameters}
        if any(
            p.blocks(2)[0] != 1 or p.blocks(2)[1] == WHOLE or p.name not in inner
            for p in parameters
        ):
            raise UnsupportedError(
                "scales to fit", expected="scaled ones of groups", found=number_format.name
            )
        return _fitted(
            weight,
            statistics.diagonal,
            jnp.float32(factor),
            jnp.asarray(self.trials, jnp.float32),
            number_format=number_format,
        )


@partial(jax.jit, static_argnames="number_format")
def _fitted(
    weight: Float32[Array, "rows columns"],
    power: Float32[Array, " columns"],
    factor: Float32[Array, ""],
    trials: Float32[Array, " trials"],
    *,
    number_format: Format,
) -> dict[str, UInt[Array, "*grid"]]:
    (scale,) = of_weights(number_format, SCALES)
    offset = next(iter(of_weights(number_format, (Role.OFFSET,))), None)
    block, limits = scale.blocks(2)[1], limits_of(number_format.element)
    extra = -weight.shape[1] % block
    numbers = jnp.pad(weight, ((0, 0), (0, extra))).reshape(len(weight), -1, block)
    weights = jnp.pad(power, (0, extra)).reshape(1, -1, block)
    if offset is None:
        found = _scaled(numbers, weights, trials, limits.lowest, limits.largest)
        return _stored(number_format, scale, factor * found, signed=True)
    found, low = _lines(numbers, weights, trials, limits.largest)
    codes = _stored(number_format, scale, factor * found, signed=False)
    return codes | _stored(number_format, offset, -factor * low, signed=False)


def _scaled(
    numbers: Float32[Array, "rows blocks block"],
    weights: Float32[Array, "one blocks block"],
    trials: Float32[Array, " trials"],
    lowest: float,
    largest: float,
) -> Float32[Array, "rows blocks"]:
    """Scales of numbers around 0."""
    at = jnp.abs(numbers).argmax(-1, keepdims=True)
    most = jnp.take_along_axis(numbers, at, axis=-1)
    most = jnp.where(most == 0, 1, most)

    def trial(best: tuple[Array, Array], beyond: Array) -> tuple[tuple[Array, Array], None]:
        codes = jnp.clip(jnp.round(numbers * ((lowest - beyond) / most)), lowest, largest)
        product = (weights * numbers * codes).sum(-1)
        square = jnp.maximum((weights * codes * codes).sum(-1), 1e-30)
        gain = product * product / square  # how much less than nothing the error is
        return (
            jnp.maximum(gain, best[0]),
            jnp.where(gain > best[0], product / square, best[1]),
        ), None

    start = jnp.zeros(most.shape[:2]), most[..., 0] / lowest
    return jax.lax.scan(trial, start, trials)[0][1]


def _lines(
    numbers: Float32[Array, "rows blocks block"],
    weights: Float32[Array, "one blocks block"],
    trials: Float32[Array, " trials"],
    largest: float,
) -> tuple[Float32[Array, "rows blocks"], Float32[Array, "rows blocks"]]:
    """Scales, and the number that code 0 means, 0 or less."""
    low = jnp.minimum(numbers.min(-1), 0)
    extent = numbers.max(-1) - low
    extent = jnp.where(extent > 0, extent, 1)
    all_of, mean = weights.sum(-1), (weights * numbers).sum(-1)

    def trial(best: Triple, beyond: Array) -> tuple[Triple, None]:
        unit = (largest + beyond) / extent
        codes = jnp.clip(jnp.round((numbers - low[..., None]) * unit[..., None]), 0, largest)
        first, second = (weights * codes).sum(-1), (weights * codes * codes).sum(-1)
        product = (weights * numbers * codes).sum(-1)
        spread = all_of * second - first * first
        slope = (all_of * product - mean * first) / jnp.maximum(spread, 1e-30)
        start = (second * mean - first * product) / jnp.maximum(spread, 1e-30)
        slope = jnp.where(start > 0, product / jnp.maximum(second, 1e-30), slope)
        start = jnp.minimum(start, 0)
        line = slope[..., None] * codes + start[..., None]
        error = (weights * jnp.square(line - numbers)).sum(-1)
        better = (error < best[0]) & (spread > 0) & (slope > 0)
        found = error, slope, start
        return jax.tree.map(partial(jnp.where, better), found, best), None

    start = jnp.full(low.shape, jnp.inf), extent / largest, low
    _, slope, first = jax.lax.scan(trial, start, trials)[0]
    return slope, first


def _stored(
    number_format: Format,
    parameter: Parameter,
    target: Float32[Array, "rows blocks"],
    *,
    signed: bool,
) -> dict[str, UInt[Array, "*grid"]]:
    """Codes of a parameter, none of them 0 if it is a scale, and of its own scale."""
    (own,) = (p for p in number_format.parameters if p.of == parameter.name)
    limits, ratio = limits_of(parameter.element), own.blocks(2)[1] // parameter.blocks(2)[1]
    blocks = target.shape[1]
    grouped = jnp.pad(target, ((0, 0), (0, -blocks % ratio))).reshape(len(target), -1, ratio)
    at = jnp.abs(grouped).argmax(-1, keepdims=True)
    most = jnp.take_along_axis(grouped, at, axis=-1)[..., 0]
    outer = encode(most / (limits.lowest if signed else limits.largest), own.element)
    unit = jnp.repeat(own.element.decode(outer), ratio, axis=1)[:, :blocks]
    units = jnp.where(unit == 0, 0, target / jnp.where(unit == 0, 1, unit))
    if parameter.role in SCALES:
        units = jnp.where(jnp.abs(units) < 0.5, 1, units)
    return {own.name: outer, parameter.name: encode(units, parameter.element)}
