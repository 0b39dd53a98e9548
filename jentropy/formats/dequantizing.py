"""Codes and parameters to numbers, in NumPy or JAX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from jentropy import modes

from .element import ElementFormat
from .floats import FP8_E8M0
from .format import WHOLE, Format, Parameter, Role

GROUP_INDEX = "group_index"  # int[columns]: the group of each column, where groups are scattered


@modes.standard
def dequantize(number_format: Format, arrays: Mapping[str, Any], dtype: Any = np.float32) -> Any:
    """The numbers of a tensor.

    Every step is one float32 operation in the order that `Format` gives, and the result is rounded
    once, to nearest even. Products with an E8M0 scale are exact on every device; others lose
    subnormal results where XLA flushes them (CPU, TPU), never in NumPy.

    Args:
      number_format: what the arrays hold.
      arrays: unsigned integer codes, all NumPy or all JAX: `code` [*shape], every parameter by
        name in its grid's shape, and `group_index` int[columns] where a column's parameters are
        those of that group instead of its block's.
      dtype: of the result.

    Returns:
      Numbers of the codes' shape, NumPy or JAX as they are.
    """

    def run(arrays: Mapping[str, Any]) -> Any:
        return _dequantize(number_format, arrays, dtype)

    return modes.automatic(run, dict(arrays), out=lambda: modes.spec_of(arrays["code"]))


def _dequantize(number_format: Format, arrays: Mapping[str, Any], dtype: Any) -> Any:
    codes = arrays["code"]
    xp: Any = np if isinstance(codes, np.ndarray) else jnp
    shape = tuple(codes.shape)
    groups = arrays.get(GROUP_INDEX)

    def factor(parameter: Parameter) -> Any:
        """A parameter's numbers on its own grid."""
        numbers = parameter.element.decode(arrays[parameter.name])
        for inner in number_format.parameters:
            if inner.of == parameter.name:
                own = inner.element.decode(arrays[inner.name])
                own = spread(own, inner, shape, parameter, None)
                numbers = _apply(numbers, own, inner.role, inner.element, xp)
        return numbers

    with np.errstate(invalid="ignore", over="ignore"):  # signalling NaNs; overflow to Inf
        numbers = number_format.element.decode(codes)
        for role in (Role.ZERO_POINT, Role.SCALE, Role.DIVISOR, Role.OFFSET):
            for parameter in number_format.parameters:
                if parameter.of is None and parameter.role is role:
                    own = spread(factor(parameter), parameter, shape, None, groups)
                    numbers = _apply(numbers, own, role, parameter.element, xp)
        return numbers.astype(dtype)


def dequantize_slabs(
    number_format: Format, arrays: Mapping[str, np.ndarray], weights: int
) -> Iterator[np.ndarray]:
    """The numbers of a tensor, float32, in slabs along its first axis.

    Args:
      weights: of a slab, about; a slab is whole blocks and at least one of them.
    """
    shape = arrays["code"].shape
    rank, length = len(shape), shape[0] if shape else 0
    if length == 0 or math.prod(shape) <= weights:
        yield dequantize(number_format, arrays)
        return
    blocks = {p.name: p.blocks(rank)[0] for p in number_format.parameters}
    step = math.lcm(1, *(min(block, length) for block in blocks.values() if block != WHOLE))
    step *= max(1, weights * length // math.prod(shape) // step)
    for start in range(0, length, step):
        stop = min(start + step, length)
        part = {"code": arrays["code"][start:stop]}
        for name, block in blocks.items():
            part[name] = arrays[name]
            if block != WHOLE:
                part[name] = arrays[name][start // block : -(-stop // block)]
        if GROUP_INDEX in arrays:
            part[GROUP_INDEX] = arrays[GROUP_INDEX]
        yield dequantize(number_format, part)


def spread(
    numbers: Any,
    parameter: Parameter,
    shape: tuple[int, ...],
    onto: Parameter | None,
    groups: Any,
) -> Any:
    """A parameter's entries, repeated for all that they serve.

    Args:
      numbers: on the parameter's grid.
      shape: of the weights.
      onto: the parameter whose grid they are spread on; None: the weights.
      groups: int[columns], the block of each column, where blocks along the last axis are no runs.
    """
    rank = len(shape)
    steps = (1,) * rank if onto is None else onto.blocks(rank)
    sizes = shape if onto is None else onto.grid(shape)
    for axis, (block, step, size) in enumerate(
        zip(parameter.blocks(rank), steps, sizes, strict=True)
    ):
        if block == WHOLE or numbers.shape[axis] == size == 1:
            continue  # broadcasts
        if groups is not None and axis == rank - 1:
            index = groups
        elif step == block:
            continue
        else:
            index = np.arange(size) * step // block
        numbers = numbers.take(index, axis=axis)
    return numbers


def _apply(numbers: Any, own: Any, role: Role, element: ElementFormat, xp: Any) -> Any:
    if role is Role.SCALE:
        if element is FP8_E8M0 and xp is jnp:
            return times_power_of_two(numbers, own)
        return numbers * own
    if role is Role.DIVISOR:
        return numbers / own if xp is np else divide(numbers, own)
    return numbers - own


def divide(numbers: Any, divisor: Any) -> Any:
    """Quotients of JAX arrays, rounded once; the numbers themselves where the divisor is zero.

    XLA turns a division by a broadcast divisor into a product with its reciprocal, which is off by
    a unit in the last place every third time. A divisor that depends on the number is none.
    """
    return numbers / jnp.where(jnp.isnan(numbers) | (divisor == 0), 1, divisor)


@jax.jit
def times_power_of_two(
    numbers: Float32[Array, "*shape"], powers: Float32[Array, "*blocks"]
) -> Float32[Array, "*shape"]:
    """Exact product of finite normal numbers (or zeros) with powers of two, by integers alone.

    Subnormal products are rounded toward zero; those of narrow elements fit.
    """
    bits = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
    scale = jax.lax.bitcast_convert_type(powers, jnp.uint32)
    sign, exponent, mantissa = bits & np.uint32(1 << 31), (bits >> 23) & 0xFF, bits & 0x7FFFFF
    # 2^-127 is the one power that float32 holds as a subnormal.
    power = jnp.where(scale == 0x400000, 0, (scale >> 23) & 0xFF)
    total = exponent.astype(jnp.int32) + power.astype(jnp.int32) - 127
    normal = (total.astype(jnp.uint32) << 23) | mantissa
    shift = jnp.minimum(1 - total, 24).astype(jnp.uint32)
    subnormal = (mantissa | 0x800000) >> shift
    product = jnp.where(
        total >= 255, jnp.uint32(0x7F800000), jnp.where(total > 0, normal, subnormal)
    )
    product = jnp.where(exponent == 0, 0, product)  # zeros
    nan = (power == 255) | ((exponent == 255) & (mantissa != 0))
    product = jnp.where(exponent == 255, bits & 0x7FFFFFFF, product)
    product = jnp.where(nan, jnp.uint32(0x7FC00000), product)
    return jax.lax.bitcast_convert_type(sign | product, jnp.float32)
