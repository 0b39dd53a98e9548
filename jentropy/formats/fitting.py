"""Scales and zero points of blocks, and the codes that are nearest with them.

XLA flushes subnormals on CPU and TPU, so those that matter (2^-127, subnormal weights under E8M0
scales) are handled as integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Shaped, UInt, UInt32

from .dequantizing import divide, numbers_of, spread
from .encoding import BIAS, MANTISSA, TINY, bits_of, encode, from_bits, is_power, limits_of
from .format import WHOLE, Format, Parameter, Role

SCALES, SHIFTS = (Role.SCALE, Role.DIVISOR), (Role.ZERO_POINT, Role.OFFSET)


def of_weights(number_format: Format, roles: Sequence[Role]) -> list[Parameter]:
    """Parameters that act on the weights themselves, of some roles."""
    return [p for p in number_format.parameters if p.of is None and p.role in roles]


def fit(
    numbers: Float32[Array, "*shape"],
    number_format: Format,
    *,
    scale_rule: str | None = None,
    factor: Any = 1.0,
    inner: Mapping[str, Any] | None = None,
) -> dict[str, UInt[Array, "*axes"]]:
    """Parameters for numbers, by today's rules (`SCALE_RULES`).

    Args:
      numbers: no NaN where the element has none.
      number_format: what `quantize` takes.
      factor: multiplies every block's extent: a number, or float32 on the grid of the scale.
      inner: codes of parameters' own scales that are to stay, by name.

    Returns:
      Codes of the parameters by name, on their grids.
    """
    element, shape = number_format.element, numbers.shape
    arrays: dict[str, UInt[Array, "*axes"]] = {}
    store = partial(
        _store, number_format=number_format, shape=shape, arrays=arrays, inner=inner or {}
    )
    scale = next(iter(of_weights(number_format, SCALES)), None)
    zero = next(iter(of_weights(number_format, SHIFTS)), None)
    if scale is None:
        return {}
    least, extent = (factor * n for n in extents(numbers, scale, centred=zero is None))
    scales = store(_scale_target(extent, number_format, scale, scale_rule), scale)
    lowest = limits_of(element).lowest  # the least number's code
    if zero is not None and zero.role is Role.OFFSET:
        store(_times(lowest, scales, scale.role) - least, zero)
    if zero is not None and zero.role is Role.ZERO_POINT:
        store(lowest - _over(least, scales, scale.role), zero)
    return arrays


def grid_numbers(
    numbers: Float32[Array, "*shape"],
    number_format: Format,
    parameters: Mapping[str, Any],
    groups: Any = None,
) -> Float32[Array, "*shape"]:
    """Numbers in units of the element: what is to be encoded.

    Args:
      numbers: float32.
      number_format: what `quantize` takes.
      parameters: their codes, by name.
      groups: int[columns], the block of each column, where blocks along the last axis are no runs.
    """
    shape = numbers.shape

    def onto_weights(parameter: Parameter) -> Any:
        on_grid = numbers_of(number_format, parameters, parameter, shape)
        return spread(on_grid, parameter, shape, None, groups)

    for zero in of_weights(number_format, (Role.OFFSET,)):
        numbers = numbers + onto_weights(zero)
    for scale in of_weights(number_format, SCALES):
        numbers = _unscale(numbers, onto_weights(scale), scale, number_format)
    for zero in of_weights(number_format, (Role.ZERO_POINT,)):
        numbers = numbers + onto_weights(zero)
    return numbers


def nearest(
    numbers: Float32[Array, "*shape"],
    number_format: Format,
    parameters: Mapping[str, Any],
    random: UInt32[Array, "*shape"] | None = None,
) -> UInt[Array, "*shape"]:
    """Codes of the numbers nearest to given ones, with given parameters.

    Args:
      random: uniform bits for stochastic rounding; None rounds to nearest, ties to even.
    """
    in_units = grid_numbers(numbers, number_format, parameters)
    return encode(in_units, number_format.element, random)


def extents(
    numbers: Float32[Array, "*shape"], scale: Parameter, *, centred: bool
) -> tuple[Float32[Array, "*grid"], Float32[Array, "*grid"]]:
    """Smallest number (or zero) and extent of every block; zero is among a block's numbers.

    Args:
      scale: whose blocks they are.
      centred: there is no zero point: the extent is the largest magnitude.
    """
    blocks = scale.blocks(numbers.ndim)
    bits = bits_of(numbers)
    finite = (bits & 0x7FFFFFFF) < 0x7F800000
    if centred:  # as integers, which keep the order of magnitudes and are not flushed
        largest = reduced(jnp.where(finite, bits & 0x7FFFFFFF, 0), blocks, jnp.max)
        return -from_bits(largest), from_bits(largest)
    numbers = jnp.where(finite, numbers, 0)
    low, high = reduced(numbers, blocks, jnp.min), reduced(numbers, blocks, jnp.max)
    return low, high * 0.5 - low * 0.5  # half of the difference, which might overflow


def reduced(
    numbers: Shaped[Array, "*shape"], blocks: tuple[int, ...], function: Callable[..., Any]
) -> Shaped[Array, "*grid"]:
    """Minimum, maximum or sum of every block and zero."""
    padding, split = [], []
    for size, block in zip(numbers.shape, blocks, strict=True):
        padding.append((0, 0 if block == WHOLE else -size % block))
        split += [1, size] if block == WHOLE else [-(-size // block), block]
    padded = jnp.pad(numbers, padding).reshape(split)
    return function(padded, axis=tuple(range(1, len(split), 2)), initial=0)


def _scale_target(
    extent: Float32[Array, "*grid"], number_format: Format, scale: Parameter, rule: str | None
) -> Float32[Array, "*grid"]:
    """What scales should be, before they are rounded to their element."""
    if rule is None:
        rule = "floor" if is_power(scale.element) else "max"
    limits = limits_of(number_format.element)
    spans = rule == "span" or of_weights(number_format, SHIFTS)
    limit = (limits.largest - limits.lowest) / 2 if spans else limits.largest
    return SCALE_RULES[rule](extent, limit)


def _quotient(extent: Float32[Array, "*grid"], limit: float) -> Float32[Array, "*grid"]:
    return divide(extent, jnp.float32(limit))


def _power_below(extent: Float32[Array, "*grid"], limit: float) -> Float32[Array, "*grid"]:
    """2^(floor(log2 extent) - floor(log2 limit)), at least 2^-127."""
    exponent = (bits_of(extent) >> MANTISSA).astype(jnp.int32) - BIAS
    return _power_of_two(exponent - _floor_log2(limit))


def _power_above(extent: Float32[Array, "*grid"], limit: float) -> Float32[Array, "*grid"]:
    """Smallest power of two that is at least extent / limit and 2^-127."""
    bits = bits_of(extent)
    mantissa = int(np.float32(limit).view(np.uint32)) & 0x7FFFFF
    exponent = (bits >> MANTISSA).astype(jnp.int32) - BIAS - _floor_log2(limit)
    return _power_of_two(exponent + ((bits & 0x7FFFFF) > mantissa))


SCALE_RULES: dict[str, Callable[[Any, float], Any]] = {
    "max": _quotient,
    "span": _quotient,
    "floor": _power_below,
    "ceil": _power_above,
}


def _floor_log2(number: float) -> int:
    return math.frexp(number)[1] - 1


def _power_of_two(exponent: Int32[Array, "*grid"]) -> Float32[Array, "*grid"]:
    """2^exponent, held between 2^-127 (a subnormal) and 2^127."""
    field = jnp.clip(exponent + BIAS, 0, 254)
    return from_bits(jnp.where(field == 0, 0x400000, field << MANTISSA))


def _store(
    target: Float32[Array, "*grid"],
    parameter: Parameter,
    *,
    number_format: Format,
    shape: tuple[int, ...],
    arrays: dict[str, UInt[Array, "*axes"]],
    inner: Mapping[str, Any],
) -> Float32[Array, "*grid"]:
    """Puts a parameter's codes, and those of its own scale, into `arrays`; returns its numbers."""
    numbers = 1 / jnp.maximum(target, TINY) if parameter.role is Role.DIVISOR else target
    limits = limits_of(parameter.element)
    own = next((p for p in number_format.parameters if p.of == parameter.name), None)
    if own is not None:
        if own.name in inner:
            arrays[own.name] = inner[own.name]
            scale = numbers_of(number_format, inner, own, shape)
        else:
            both = zip(own.blocks(len(shape)), parameter.blocks(len(shape)), strict=True)
            blocks = tuple(WHOLE if WHOLE in pair else pair[0] // pair[1] for pair in both)
            scale = _quotient(reduced(jnp.abs(numbers), blocks, jnp.max), limits.largest)
            scale = _store(
                scale,
                own,
                number_format=number_format,
                shape=shape,
                arrays=arrays,
                inner=inner,
            )
        scale = spread(scale, own, shape, parameter, None)
        numbers = _over(numbers, scale, own.role)
    codes = encode(numbers, parameter.element)
    if parameter.role in SCALES:
        codes = jnp.clip(codes, limits.least_code, limits.largest_code).astype(codes.dtype)
    arrays[parameter.name] = codes
    numbers = parameter.element.decode(codes)
    return numbers if own is None else _times(numbers, scale, own.role)


def _times(numbers: Any, scale: Any, role: Role) -> Any:
    """Numbers times a scale; a scale that is a divisor divides."""
    return divide(numbers, scale) if role is Role.DIVISOR else numbers * scale


def _over(numbers: Any, scale: Any, role: Role) -> Any:
    """The inverse of `_times`."""
    return numbers * scale if role is Role.DIVISOR else divide(numbers, scale)


def _unscale(
    numbers: Float32[Array, "*shape"],
    scale: Float32[Array, "*grid"],
    parameter: Parameter,
    number_format: Format,
) -> Float32[Array, "*shape"]:
    """Numbers in units of their scale; exact where that is an E8M0 number."""
    has_own = any(p.of == parameter.name for p in number_format.parameters)
    if parameter.role is Role.SCALE and is_power(parameter.element) and not has_own:
        return _over_power(numbers, scale)
    return _over(numbers, scale, parameter.role)


def _over_power(
    numbers: Float32[Array, "*shape"], powers: Float32[Array, "*grid"]
) -> Float32[Array, "*shape"]:
    """Exact numbers / powers of two, but for results below 2^-126, which become zero."""
    bits = bits_of(numbers)
    magnitude = bits & 0x7FFFFFFF
    sign = bits ^ magnitude
    power = (bits_of(powers) >> MANTISSA).astype(jnp.int32) - BIAS
    # A subnormal is an integer times 2^-149.
    subnormal = magnitude < 1 << MANTISSA
    integer = magnitude.astype(jnp.int32).astype(jnp.float32)
    normalised = jnp.where(subnormal, bits_of(integer), magnitude)
    power = power + jnp.where(subnormal, 149, 0)
    exponent = (normalised >> MANTISSA).astype(jnp.int32) - power
    moved = exponent.astype(jnp.uint32) << MANTISSA | normalised & 0x7FFFFF
    moved = jnp.where(exponent >= 255, 0x7F7FFFFF, jnp.where(exponent <= 0, 0, moved))
    moved = jnp.where(magnitude >= 0x7F800000, magnitude, moved)
    return from_bits(sign | moved)
