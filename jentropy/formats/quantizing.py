"""Numbers to codes and parameters: the inverse of `dequantize`, in JAX.

A block is encoded in three steps, all of which read the `Format` and none its name:

    extent  largest magnitude in the block; half of largest minus smallest where the format has a
            zero point or an offset
    scale   extent / limit, where limit is how far the element reaches; rounded to its own element,
            after its own scale (NVFP4's second level) has been found in the same way
    code    the element's number nearest to value / scale, ties to even, with the rounded scale

A scale rule says which limit is meant and how the quotient is rounded:

    max    extent / largest number of the element (448, 6, 7, 127), rounded to nearest
    span   extent / half of the element's range (7.5 for INT4's -8 .. 7), rounded to nearest
    floor  2^(floor(log2 extent) - floor(log2 largest)), OCP MX; may saturate elements
    ceil   the smallest power of two for which the extent does not saturate

Exponents are integers cut out of float32 bits, never exp2 or log2, which XLA rounds. XLA flushes
subnormals on CPU and TPU, so those that matter (2^-127, subnormal weights under E8M0 scales) are
handled as integers too.

References:
  OCP Microscaling Formats (MX) Specification, version 1.0, section 6.3; OCP 8-bit Floating Point
  Specification (OFP8), revision 1.0, saturating mode; NVIDIA, "Introducing NVFP4", 2025;
  DeepSeek-V3 technical report, arXiv 2412.19437, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray, Shaped, UInt

from jentropy import modes
from jentropy.errors import InputError, UnsupportedError

from .dequantizing import divide, spread
from .element import RAW, TABLE_BITS
from .encoding import BIAS, MANTISSA, TINY, bits_of, encode, from_bits, is_power, limits_of
from .format import WHOLE, Format, Parameter, Role

INPUTS = ("float32", "bfloat16", "float16")
SCALES, SHIFTS = (Role.SCALE, Role.DIVISOR), (Role.ZERO_POINT, Role.OFFSET)


def quantize(
    values: Shaped[Array | np.ndarray, "*shape"],
    number_format: Format,
    *,
    scale_rule: str | None = None,
    key: PRNGKeyArray | None = None,
) -> dict[str, UInt[Array, "*axes"]]:
    """Codes and parameters of numbers, which `dequantize` turns back into the nearest numbers.

    Finite numbers beyond the element's largest saturate. NaN and infinities do not count in a
    block's extent: NaN becomes the element's NaN (sign kept), or what zero becomes if it has none,
    and an infinity the element's, or saturates. A scale is at least the least positive number of
    its element that float32 arithmetic does not flush; a block of zeros has that one.

    Args:
      values: float32, bfloat16 or float16, of rank 1 or more, NumPy or JAX; no axis need be a
        multiple of its block, and there may be no values at all.
      number_format: an element of up to 16 bits, or FP32; at most one scale (or divisor) of the
        weights and at most one zero point or offset, which has the scale's blocks; each may have
        one scale of its own.
      scale_rule: one of `SCALE_RULES`. None: floor for scales that are powers of two (E8M0), max
        for others.
      key: where given, codes are rounded up or down at random, so that they are right on average;
        parameters are still rounded to nearest.

    Returns:
      Unsigned integer codes in the low bits of the narrowest dtype: `code` [*shape], and every
      parameter by name in its grid's shape.

    Raises:
      UnsupportedError: the dtype, the rule, or a format's combination of parameters; a derivative,
        which is zero almost everywhere and asked for by mistake.
      InputError: values of rank 0 or of fewer axes than a block.

    Example:
      >>> import jax.numpy as jnp
      >>> from jentropy.formats import INT4_GROUP, dequantize
      >>> from jentropy.formats.quantizing import quantize
      >>> arrays = quantize(jnp.array([0.0, -0.4, 1.0, 3.5]), INT4_GROUP)
      >>> {name: codes.tolist() for name, codes in arrays.items()}
      {'code': [0, 15, 2, 7], 'scale': [16128]}
      >>> dequantize(INT4_GROUP, arrays).tolist()
      [0.0, -0.5, 1.0, 3.5]
    """
    if not isinstance(number_format, Format):
        raise InputError("format", expected="a formats.Format", found=f"{number_format!r:.60}")
    is_array = isinstance(values, jax.Array | np.ndarray)
    dtype = str(values.dtype) if is_array else type(values).__name__
    if dtype not in INPUTS:
        raise UnsupportedError("numbers to quantize", expected=" or ".join(INPUTS), found=dtype)
    _check(number_format, scale_rule, values.ndim)
    with modes.any_numbers():
        values = _without_derivative(jnp.asarray(values))
        arrays = modes.automatic(
            partial(_quantize, number_format=number_format, scale_rule=scale_rule),
            values,
            key,
            out=lambda: {
                "code": modes.spec_of(values),
                **{p.name: PartitionSpec() for p in number_format.parameters},
            },
        )
    return {name: arrays[name] for name in ("code", *(p.name for p in number_format.parameters))}


@jax.custom_jvp
def _without_derivative(values: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    return values


@_without_derivative.defjvp
def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    raise UnsupportedError(
        "derivative of quantize",
        expected="numbers that none is taken of",
        found="numbers that one is taken of",
        hint="it is zero almost everywhere: take jax.lax.stop_gradient(values), or x + "
        "stop_gradient(dequantize(...) - x) for a straight-through estimate",
    )


def _check(number_format: Format, scale_rule: str | None, rank: int) -> None:
    """Raises where `quantize` cannot do what it is asked to."""
    name, parameters = number_format.name, number_format.parameters
    if scale_rule is not None and scale_rule not in SCALE_RULES:
        raise UnsupportedError("scale rule", expected=" or ".join(SCALE_RULES), found=scale_rule)
    for element in (number_format.element, *(p.element for p in parameters)):
        if element.name == RAW or (element.code_bits > TABLE_BITS and element.name != "FP32"):
            raise UnsupportedError(
                f"{name}: element to encode into",
                expected="up to 16 bits, or FP32",
                found=element.name,
            )
    axes = max((len(p.block) for p in parameters if p.block is not None), default=1)
    if rank < axes:
        raise InputError(f"{name}: axes of the values", expected=f"at least {axes}", found=rank)
    scales = _of_weights(number_format, SCALES)
    zeros = _of_weights(number_format, SHIFTS)
    if len(scales) > 1 or len(zeros) > len(scales):
        raise UnsupportedError(
            f"{name}: parameters of weights",
            expected="one scale, and one zero point or offset beside it",
            found=", ".join(p.name for p in (*scales, *zeros)),
        )
    for zero in zeros:
        if zero.blocks(rank) != scales[0].blocks(rank):
            raise UnsupportedError(
                f"{name}: blocks of {zero.name}", expected=scales[0].block, found=zero.block
            )
    for outer in parameters:
        _check_own(number_format, outer, scale_rule, rank)


def _check_own(number_format: Format, outer: Parameter, rule: str | None, rank: int) -> None:
    """Raises where `_store` cannot find a parameter's own scale."""
    inner = [p for p in number_format.parameters if p.of == outer.name]
    what = f"{number_format.name}: parameters of {outer.name}"
    if len(inner) > 1 or any(p.role not in SCALES for p in inner):
        raise UnsupportedError(what, expected="one scale", found=", ".join(p.name for p in inner))
    for p in inner:
        blocks = zip(p.blocks(rank), outer.blocks(rank), strict=True)
        if any(a != WHOLE and (b == WHOLE or a % b) for a, b in blocks):
            raise UnsupportedError(what, expected=f"multiples of {outer.block}", found=p.block)
        if rule in ("floor", "ceil") and outer.role in SCALES:
            raise UnsupportedError(f"scale rule, {what}", expected="max or span", found=rule)


def _of_weights(number_format: Format, roles: Sequence[Role]) -> list[Parameter]:
    return [p for p in number_format.parameters if p.of is None and p.role in roles]


def _float32(values: Float[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """The same numbers, subnormals of bfloat16 too."""
    if values.dtype == jnp.bfloat16:
        bits = jax.lax.bitcast_convert_type(values, jnp.uint16)
        return from_bits(bits.astype(jnp.uint32) << 16)
    return values.astype(jnp.float32)


@modes.standard
@partial(jax.jit, static_argnames=("number_format", "scale_rule"))
def _quantize(
    values: Float[Array, "*shape"],
    key: PRNGKeyArray | None,
    *,
    number_format: Format,
    scale_rule: str | None,
) -> dict[str, UInt[Array, "*axes"]]:
    element, shape, rank = number_format.element, values.shape, values.ndim
    numbers = _float32(values)
    if limits_of(element).nan is None:
        numbers = jnp.where(jnp.isnan(numbers), 0, numbers)
    arrays: dict[str, UInt[Array, "*axes"]] = {}
    store = partial(_store, number_format=number_format, shape=shape, arrays=arrays)
    onto_weights = partial(spread, shape=shape, onto=None, groups=None)
    scale = next(iter(_of_weights(number_format, SCALES)), None)
    zero = next(iter(_of_weights(number_format, SHIFTS)), None)
    if scale is not None:
        least, extent = _extent(numbers, scale.blocks(rank), centred=zero is None)
        scales = store(_scale_target(extent, number_format, scale, scale_rule), scale)
        lowest = limits_of(element).lowest  # the least number's code
        if zero is not None and zero.role is Role.OFFSET:
            offset = store(_times(lowest, scales, scale.role) - least, zero)
            numbers = numbers + onto_weights(offset, zero)
        numbers = _unscale(numbers, onto_weights(scales, scale), scale, number_format)
        if zero is not None and zero.role is Role.ZERO_POINT:
            zero_point = store(lowest - _over(least, scales, scale.role), zero)
            numbers = numbers + onto_weights(zero_point, zero)
    random = None if key is None else jax.random.bits(key, shape, jnp.uint32)
    return {"code": encode(numbers, element, random), **arrays}


# Blocks and their scales.


def _extent(
    numbers: Float32[Array, "*shape"], blocks: tuple[int, ...], *, centred: bool
) -> tuple[Float32[Array, "*grid"], Float32[Array, "*grid"]]:
    """Smallest number (or zero) and extent of every block; zero is among a block's numbers."""
    bits = bits_of(numbers)
    finite = (bits & 0x7FFFFFFF) < 0x7F800000
    if centred:  # as integers, which keep the order of magnitudes and are not flushed
        largest = _reduce(jnp.where(finite, bits & 0x7FFFFFFF, 0), blocks, jnp.max)
        return -from_bits(largest), from_bits(largest)
    numbers = jnp.where(finite, numbers, 0)
    low, high = _reduce(numbers, blocks, jnp.min), _reduce(numbers, blocks, jnp.max)
    return low, high * 0.5 - low * 0.5  # half of the difference, which might overflow


def _reduce(
    numbers: Shaped[Array, "*shape"], blocks: tuple[int, ...], function: Callable[..., Any]
) -> Shaped[Array, "*grid"]:
    """Minimum or maximum of every block and zero."""
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
    spans = rule == "span" or _of_weights(number_format, SHIFTS)
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
) -> Float32[Array, "*grid"]:
    """Puts a parameter's codes, and those of its own scale, into `arrays`; returns its numbers."""
    numbers = 1 / jnp.maximum(target, TINY) if parameter.role is Role.DIVISOR else target
    limits = limits_of(parameter.element)
    inner = next((p for p in number_format.parameters if p.of == parameter.name), None)
    if inner is not None:
        both = zip(inner.blocks(len(shape)), parameter.blocks(len(shape)), strict=True)
        blocks = tuple(WHOLE if WHOLE in pair else pair[0] // pair[1] for pair in both)
        largest = _reduce(jnp.abs(numbers), blocks, jnp.max)
        scale = _quotient(largest, limits.largest)
        scale = _store(scale, inner, number_format=number_format, shape=shape, arrays=arrays)
        scale = spread(scale, inner, shape, parameter, None)
        numbers = _over(numbers, scale, inner.role)
    codes = encode(numbers, parameter.element)
    if parameter.role in SCALES:
        codes = jnp.clip(codes, limits.least_code, limits.largest_code).astype(codes.dtype)
    arrays[parameter.name] = codes
    numbers = parameter.element.decode(codes)
    return numbers if inner is None else _times(numbers, scale, inner.role)


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
