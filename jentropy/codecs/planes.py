"""Codes as byte planes: the symbols that the archive codes one by one.

The first plane of a floating-point format is its exponent with as many leading mantissa bits as
fit a byte; what is left, sign first, follows in bytes:

    BF16   exponent 8                  | sign 1, mantissa 7
    FP16   exponent 5, mantissa 3      | sign 1, mantissa 7
    FP32   exponent 8                  | sign 1, mantissa 7 | mantissa 8 | mantissa 8

Other codes are cut into bytes from the most significant down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt, UInt8

from jentropy.formats import Format

PLANE_BITS = 8


@dataclass(frozen=True, slots=True)
class Bits:
    """A run of bits of a code."""

    low: int  # bits below it
    count: int


Plane = tuple[Bits, ...]  # most significant run first; PLANE_BITS bits in all


@lru_cache
def planes_of(number_format: Format) -> tuple[Plane, ...]:
    """The planes of a format, in the order that they are stored in."""
    bits = number_format.code_bits
    if number_format.bias is None:
        return tuple((Bits(low, PLANE_BITS),) for low in reversed(range(0, bits, PLANE_BITS)))
    exponent = number_format.field_bits("exponent")
    mantissa = number_format.field_bits("mantissa")
    leading = PLANE_BITS - exponent
    first = Bits(number_format.shift("exponent") - leading, PLANE_BITS)
    rest = mantissa - leading  # mantissa bits that follow the sign
    head = PLANE_BITS - 1
    second = (Bits(bits - 1, 1), Bits(rest - head, head))
    tail = [(Bits(low, PLANE_BITS),) for low in reversed(range(0, rest - head, PLANE_BITS))]
    return ((first,), second, *tail)


def plane_counts(number_format: Format, slices: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """Histogram of each plane's symbols, int64[256] each, from 16-bit histograms of the codes.

    Args:
      number_format: a format of 8 or 16 k bits.
      slices: counts of bits 16 i and up of the codes, as `entropy.Counts` holds them.
    """
    counts = []
    for plane in planes_of(number_format):
        slice_index = plane[0].low // 16
        codes = np.arange(slices[slice_index].size, dtype=np.uint32)
        symbols = np.zeros_like(codes)
        for run in plane:
            assert run.low // 16 == slice_index, "a plane crosses no slice"
            part = (codes >> np.uint32(run.low % 16)) & np.uint32((1 << run.count) - 1)
            symbols = symbols << np.uint32(run.count) | part
        histogram = np.zeros(1 << PLANE_BITS, np.int64)
        np.add.at(histogram, symbols, slices[slice_index])
        counts.append(histogram)
    return counts


@partial(jax.jit, static_argnames=("number_format", "index"))
def extract(codes: UInt[Array, n], *, number_format: Format, index: int) -> UInt8[Array, n]:
    """Symbols of one plane."""
    symbols = jnp.zeros_like(codes)
    for run in planes_of(number_format)[index]:
        symbols = symbols << run.count | (codes >> run.low) & ((1 << run.count) - 1)
    return symbols.astype(jnp.uint8)


@partial(jax.jit, static_argnames="number_format")
def merge(planes: UInt8[Array, "planes n"], *, number_format: Format) -> UInt[Array, n]:
    """Codes of all planes: the inverse of `extract`."""
    dtype = jnp.dtype(f"uint{number_format.code_bits}")
    codes = jnp.zeros(planes.shape[1], dtype)
    for plane, symbols in zip(planes_of(number_format), planes, strict=True):
        below = PLANE_BITS
        for run in plane:
            below -= run.count
            part = (symbols.astype(dtype) >> below) & ((1 << run.count) - 1)
            codes = codes | part << run.low
    return codes
