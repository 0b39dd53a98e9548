"""Numbers to the codes of one element, in JAX: the inverse of `ElementFormat.decode`.

Floats are encoded by integer arithmetic on float32 bits: XLA rounds exp2 and log2, and flushes
subnormals on CPU and TPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt, UInt32

from jentropy.errors import UnsupportedError

from .element import TABLE_BITS, ElementFormat, code_dtype

MANTISSA = 23  # bits of a float32's mantissa
BIAS = 127
TINY = np.float32(2.0**-126)  # least number that float32 arithmetic does not flush


def encode(
    numbers: Float32[Array, "*shape"],
    element: ElementFormat,
    random: UInt32[Array, "*shape"] | None = None,
) -> UInt[Array, "*shape"]:
    """Codes of the element's numbers nearest to given ones: the inverse of `ElementFormat.decode`.

    Args:
      numbers: finite ones saturate; infinities do where the element has none.
      element: sign, exponent and mantissa from the most significant bit down, an integer, or a
        table.
      random: uniform bits for stochastic rounding; None rounds to nearest, ties to even.
    """
    if element.table is not None:
        codes = _encode_table
    else:
        codes = _encode_integer if element.bias is None else _encode_float
    return codes(numbers, element, random).astype(code_dtype(element.dtype))


def _encode_integer(
    numbers: Float32[Array, "*shape"],
    element: ElementFormat,
    random: UInt32[Array, "*shape"] | None,
) -> Int32[Array, "*shape"]:
    if random is None:
        rounded = jnp.round(numbers)
    else:
        below = jnp.floor(numbers)
        uniform = (random >> 8).astype(jnp.float32) * 2.0**-24
        rounded = below + (uniform < numbers - below).astype(jnp.float32)
    limits = limits_of(element)
    integers = jnp.clip(rounded, limits.lowest, limits.largest).astype(jnp.int32)
    return integers + element.excess & (1 << element.code_bits) - 1


def _encode_table(
    numbers: Float32[Array, "*shape"],
    element: ElementFormat,
    random: UInt32[Array, "*shape"] | None,
) -> Int32[Array, "*shape"]:
    """Codes of the nearest of a table's numbers; of two as near, that of the even code."""
    levels, codes = levels_of(element)
    above = jnp.searchsorted(jnp.asarray(levels), numbers, side="right", method="scan_unrolled")
    low = jnp.clip(above - 1, 0, levels.size - 1)
    high = jnp.clip(above, 0, levels.size - 1)
    table, code = jnp.asarray(levels), jnp.asarray(codes)
    down, up = numbers - table[low], table[high] - numbers
    if random is None:
        goes_up = (up < down) | ((up == down) & (code[low] & 1 == 1))
    else:
        uniform = (random >> 8).astype(jnp.float32) * 2.0**-24
        goes_up = uniform * (table[high] - table[low]) < down
    return code[jnp.where(goes_up & (high > low), high, low)]


@lru_cache
def levels_of(element: ElementFormat) -> tuple[np.ndarray, np.ndarray]:
    """Distinct finite numbers of an element in order, float32[levels], and a code of each, int32.

    Example:
      >>> from jentropy.formats import FP4_E2M1
      >>> numbers, codes = levels_of(FP4_E2M1)
      >>> numbers[:3].tolist(), codes[:3].tolist()
      ([-6.0, -4.0, -3.0], [15, 14, 13])

    Raises:
      UnsupportedError: codes of more than 16 bits.
    """
    if element.code_bits > TABLE_BITS:
        found = f"{element.code_bits} bits"
        raise UnsupportedError(f"numbers of {element.name}", expected="up to 16", found=found)
    numbers = element.decode(np.arange(1 << element.code_bits, dtype=code_dtype(element.dtype)))
    finite = np.flatnonzero(np.isfinite(numbers))
    levels, first = np.unique(numbers[finite], return_index=True)
    return levels, finite[first].astype(np.int32)


def _encode_float(
    numbers: Float32[Array, "*shape"],
    element: ElementFormat,
    random: UInt32[Array, "*shape"] | None,
) -> UInt32[Array, "*shape"]:
    """Codes of a float element, by integers alone: they grow with the magnitudes that they mean."""
    limits, mantissa_bits = limits_of(element), element.field_bits("mantissa")
    assert element.bias is not None
    # Numbers of the least exponent lie evenly down to zero, unless the least code is no zero.
    least_exponent = 1 - element.bias if limits.has_zero else -element.bias
    bits = bits_of(numbers)
    magnitude = bits & 0x7FFFFFFF
    field = (magnitude >> MANTISSA).astype(jnp.int32)
    significand = magnitude & 0x7FFFFF | jnp.where(field > 0, jnp.uint32(1 << MANTISSA), 0)
    exponent = jnp.maximum(field, 1) - BIAS  # of the significand's bit 23
    kept = jnp.maximum(exponent, least_exponent)
    rounded = _shift_right(significand, MANTISSA - mantissa_bits + kept - exponent, random)
    codes = rounded.astype(jnp.int32) + (kept - least_exponent << mantissa_bits)
    if not limits.has_zero:
        codes = jnp.maximum(codes - (1 << mantissa_bits), 0)
    codes = jnp.minimum(codes, limits.largest_code)
    if not element.field_bits("sign"):
        codes = jnp.where(bits >> 31 == 1, 0, codes)
    if limits.infinity is not None:
        codes = jnp.where(magnitude == 0x7F800000, limits.infinity, codes)
    if limits.nan is not None:
        codes = jnp.where(magnitude > 0x7F800000, limits.nan, codes)
    codes = codes.astype(jnp.uint32)
    if element.field_bits("sign"):
        codes = codes | bits >> 31 << element.shift("sign")
    return codes


def _shift_right(
    integers: UInt32[Array, "*shape"],
    shift: Int32[Array, "*shape"],
    random: UInt32[Array, "*shape"] | None,
) -> UInt32[Array, "*shape"]:
    """Integers below 2^24 over 2^shift, rounded to nearest even, or at random."""
    beyond = jnp.clip(shift - 31, 0, 31).astype(jnp.uint32)
    integers, step = integers >> beyond, jnp.minimum(shift, 31).astype(jnp.uint32)
    floor, unit = integers >> step, jnp.uint32(1) << step
    rest = integers & unit - 1
    up: Bool[Array, "*shape"]
    up = 2 * rest + (floor & 1) > unit if random is None else (random & unit - 1) < rest
    return floor + up.astype(jnp.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of an element's numbers, from all of its codes."""

    lowest: float  # finite
    largest: float  # finite
    largest_code: int
    least_code: int  # of the least positive number that may be a scale
    infinity: int | None  # code; None where there is none
    nan: int | None
    has_zero: bool


@lru_cache
def limits_of(element: ElementFormat) -> Limits:
    """The bounds of an element."""
    if element.code_bits <= TABLE_BITS:
        codes = np.arange(1 << element.code_bits, dtype=code_dtype(element.dtype))
    else:  # FP32: 0, least normal, largest, Inf, lowest
        codes = np.array([0, 1 << 23, 0x7F7FFFFF, 0x7F800000, 0xFF7FFFFF], np.uint32)
    numbers = element.decode(codes)
    finite = np.isfinite(numbers)
    usable = finite & (numbers >= (0 if is_power(element) else TINY)) & (numbers > 0)
    infinite = codes[np.isposinf(numbers)]
    nan = None
    if element.bias is not None and not element.is_minifloat:
        with np.errstate(invalid="ignore"):
            quiet = np.array(np.nan, np.float32).astype(element.dtype)
        nan = int(quiet.view(codes.dtype)) if np.isnan(quiet.astype(np.float32)) else None
    return Limits(
        lowest=float(numbers[finite].min()),
        largest=float(numbers[finite].max()),
        largest_code=int(codes[np.where(finite, numbers, -np.inf).argmax()]),
        least_code=int(codes[np.where(usable, numbers, np.inf).argmin()]),
        infinity=int(infinite[0]) if infinite.size else None,
        nan=nan,
        has_zero=bool((numbers == 0).any()),
    )


def is_power(element: ElementFormat) -> bool:
    """Whether all numbers of an element are powers of two: E8M0."""
    return element.bias is not None and [f.name for f in element.fields] == ["exponent"]


def bits_of(numbers: Float32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Bits of float32 numbers.

    Example:
      >>> hex(int(bits_of(jnp.float32(1))))
      '0x3f800000'
    """
    return jax.lax.bitcast_convert_type(numbers, jnp.uint32)


def from_bits(bits: UInt32[Array, "*shape"] | Int32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Float32 numbers of bits: the inverse of `bits_of`."""
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
