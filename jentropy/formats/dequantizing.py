"""Codes and parameters to numbers, in NumPy or JAX."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from jentropy import modes

from .decoders import DECODERS
from .element import ElementFormat
from .encoding import bits_of, from_bits
from .floats import FP8_E8M0
from .format import WHOLE, Format, Parameter, Role
from .step import Step, by_matrix
from .transforms import TRANSFORMS, Transform

# What parameters do, in the order in which they do it.
OPERATIONS: dict[Role, Callable[[Any, Any], Any]] = {
    Role.ZERO_POINT: operator.sub,
    Role.SCALE: operator.mul,
    Role.DIVISOR: operator.truediv,
    Role.OFFSET: operator.sub,
}
ORDER = tuple(OPERATIONS)
GROUP_INDEX = "group_index"  # int[columns]: the group of each column, where groups are scattered


@modes.standard
def dequantize(number_format: Format, arrays: Mapping[str, Any], dtype: Any = np.float32) -> Any:
    """The numbers of a tensor.

    Every step is one float32 operation in the order that `Format` gives, and the result is rounded
    once, to nearest even. Products with an E8M0 scale are exact on every device; others lose
    subnormal results where XLA flushes them (CPU, TPU), never in NumPy.

    Args:
      number_format: what the arrays hold.
      arrays: unsigned integer codes, all NumPy or all JAX: `code` [*shape] (or what the decoder
        has), every parameter by name in its grid's shape, the arrays of decoder and transforms,
        and `group_index` int[columns] where a column's parameters are those of that group instead
        of its block's.
      dtype: of the result.

    Returns:
      Numbers of the weight's shape, NumPy or JAX as the codes are.

    Example:
      >>> from jentropy.formats import INT8_ROW
      >>> code = np.array([[2, 0xFF]], np.uint8)
      >>> scale = np.array([[0x3F00]], np.uint16)  # 0.5, BF16
      >>> dequantize(INT8_ROW, {"code": code, "scale": scale}).tolist()
      [[1.0, -0.5]]
    """

    def run(arrays: Mapping[str, Any]) -> Any:
        with np.errstate(invalid="ignore", over="ignore"):  # signalling NaNs; overflow to Inf
            shape = number_format.shape(tuple(arrays["code"].shape))
            numbers = numbers_of(number_format, arrays, None, shape)
            return _transformed_back(number_format, numbers, arrays).astype(dtype)

    return modes.automatic(run, dict(arrays), out=lambda: modes.spec_of(arrays["code"]))


def numbers_of(
    number_format: Format,
    arrays: Mapping[str, Any],
    of: Parameter | None,
    shape: tuple[int, ...],
) -> Any:
    """Numbers of a parameter on its own grid, or of the weight (None), not transformed back.

    Args:
      shape: of the weight.
    """
    numbers = _decoded(number_format, arrays) if of is None else of.element.decode(arrays[of.name])
    on_it = [p for p in number_format.parameters if p.of == (of and of.name)]
    for p in sorted(on_it, key=lambda p: ORDER.index(p.role)):
        groups = arrays.get(GROUP_INDEX) if of is None else None
        factors = spread(numbers_of(number_format, arrays, p, shape), p, shape, of, groups)
        numbers = _apply(numbers, factors, p.role, p.element)
    return numbers


def _decoded(number_format: Format, arrays: Mapping[str, Any]) -> Any:
    """Numbers of the codes, before parameters act on them."""
    step, code = number_format.decoder, arrays["code"]
    decoder = DECODERS[step.name]
    if not step.arrays and not step.settings:
        return decoder.decode(step, number_format.element, code, {})

    def one(own: Mapping[str, Any]) -> Any:
        tables = step.numbers(own, decoder.arrays)
        return decoder.decode(step, number_format.element, own["code"], tables)

    own = {name: arrays[name] for name in ("code", *(a.name for a in step.arrays))}
    return by_matrix(one, own, tuple(code.shape[:-2]))


def _transformed_back(number_format: Format, numbers: Any, arrays: Mapping[str, Any]) -> Any:
    """Numbers of the space that the weight came from."""
    for step in reversed(number_format.transforms):
        transform = TRANSFORMS[step.name]

        def one(own: Mapping[str, Any], step: Step = step, transform: Transform = transform) -> Any:
            return transform.undo(step, own["numbers"], step.numbers(own, transform.arrays))

        own = {"numbers": numbers, **{a.name: arrays[a.name] for a in step.arrays}}
        numbers = by_matrix(one, own, tuple(numbers.shape[:-2]))
    return numbers


def dequantize_slabs(
    number_format: Format, arrays: Mapping[str, np.ndarray], weights: int
) -> Iterator[np.ndarray]:
    """The numbers of a tensor, float32, in slabs along its first axis.

    A matrix that decodes only as a whole is one slab.

    Args:
      number_format: what the codes mean.
      arrays: codes of the weight and of each parameter, as `dequantize` takes them.
      weights: of a slab, about; a slab is whole blocks and at least one of them.

    Yields:
      float32[rows, ...], which `numpy.concatenate` makes the tensor of.

    Example:
      >>> from jentropy.formats import FORMATS
      >>> arrays = {"code": np.zeros((6, 4), np.uint16)}
      >>> [slab.shape for slab in dequantize_slabs(FORMATS["BF16"], arrays, 8)]
      [(2, 4), (2, 4), (2, 4)]
    """
    shape = number_format.shape(arrays["code"].shape)
    rank, length = len(shape), shape[0] if shape else 0
    matrix = rank == 2 and not number_format.is_by_rows
    if length == 0 or math.prod(shape) <= weights or matrix:
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
        for side in number_format.side_arrays:
            part[side.name] = arrays[side.name][start:stop] if rank > 2 else arrays[side.name]
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

    Returns:
      An array that broadcasts to the weights, or to the grid of `onto`.

    Example:
      >>> from jentropy.formats import MXFP8
      >>> scale = MXFP8.parameter("scale")  # of 32 weights
      >>> spread(np.array([[1.0, 2.0]]), scale, (1, 64), None, None)[0, [0, 31, 32]].tolist()
      [1.0, 1.0, 2.0]
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
        elif block % step == 0 and numbers.shape[axis] * (block // step) == size:
            numbers = _repeated(numbers, block // step, axis)
            continue
        else:
            index = np.arange(size) * step // block
        numbers = numbers.take(index, axis=axis)
    return numbers


def _repeated(numbers: Any, times: int, axis: int) -> Any:
    """Every entry so often along an axis, without an index: XLA fuses it with what follows."""
    if isinstance(numbers, np.ndarray):
        return numbers.repeat(times, axis)
    before, after = numbers.shape[: axis + 1], numbers.shape[axis + 1 :]
    apart = jnp.broadcast_to(jnp.expand_dims(numbers, axis + 1), (*before, times, *after))
    return apart.reshape(*before[:-1], -1, *after)


def _apply(numbers: Any, factors: Any, role: Role, element: ElementFormat) -> Any:
    on_host = isinstance(numbers, np.ndarray)
    if role is Role.SCALE and element is FP8_E8M0 and not on_host:
        return times_power_of_two(numbers, factors)
    if role is Role.DIVISOR and not on_host:
        return divide(numbers, factors)
    return OPERATIONS[role](numbers, factors)


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

    Args:
      numbers: finite ones are normal or zeros.
      powers: of the numbers' shape, or one that broadcasts to it.

    Example:
      >>> times_power_of_two(jnp.float32([3, -0.5]), jnp.float32([0.25, 4])).tolist()
      [0.75, -2.0]
    """
    bits, scale = bits_of(numbers), bits_of(powers)
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
    return from_bits(sign | product)
