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

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Float32, PRNGKeyArray, Shaped, UInt

from jentropy import modes
from jentropy.errors import InputError, UnsupportedError

from .element import RAW, TABLE_BITS
from .encoding import from_bits, limits_of
from .fitting import SCALE_RULES, SCALES, SHIFTS, fit, nearest, of_weights
from .format import WHOLE, Format, Parameter, expect_format

INPUTS = ("float32", "bfloat16", "float16")


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
    expect_format(number_format)
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
        hint="it is zero almost everywhere: formats.fake_quantize has gradients that stand for it; "
        "jax.lax.stop_gradient(values) says that none is meant",
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
    scales = of_weights(number_format, SCALES)
    zeros = of_weights(number_format, SHIFTS)
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
    numbers = _float32(values)
    if limits_of(number_format.element).nan is None:
        numbers = jnp.where(jnp.isnan(numbers), 0, numbers)
    parameters = fit(numbers, number_format, scale_rule=scale_rule)
    random = None if key is None else jax.random.bits(key, values.shape, jnp.uint32)
    return {"code": nearest(numbers, number_format, parameters, random), **parameters}
