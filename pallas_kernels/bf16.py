"""What has to do with bfloat16: windows of exponents, numbers of codes, float32 as a sum."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped, UInt8, UInt16

from jentropy.codecs import window12
from jentropy.entropy import histogram
from jentropy.formats import Format

BIAS = 127  # of an exponent
PARTS = 3  # bfloat16 numbers that a float32 is the sum of
FEW = 1 << 22  # codes that are counted in less time on the host
ESCAPE_RATE = 1.6e-4 * 1.3  # of Gaussian weights, and room for those that are less so


def holds(number_format: Format) -> bool:
    """Plain BF16."""
    return number_format.element.name == "BF16" and not number_format.parameters


def escapes_of(weights: int) -> int:
    """Escapes that so many Gaussian weights have in window12, and some more."""
    return math.ceil(weights * ESCAPE_RATE)


def tops(codes: UInt16[Array, "rows columns"], axis: int) -> UInt16[Array, " others"]:
    """Top of the window that leaves the fewest escapes, for all codes along an axis."""
    exponents = ((codes >> 7) & 0xFF).astype(jnp.uint8)
    counts = jax.lax.map(
        lambda e: (exponents == e).sum(axis, dtype=jnp.int32), jnp.arange(256, dtype=jnp.uint8)
    )
    return window12.choose_top(counts.T).astype(jnp.uint16)


def exponents(codes: UInt16[np.ndarray, "rows columns"]) -> np.ndarray:
    """How many codes have each exponent field, int[256]."""
    if codes.size > FEW:
        counts = histogram.count(codes, bits=16).reshape(2, 256, -1)
    else:  # than to compile what counts faster
        flat, counts = codes.reshape(-1), np.zeros((2, 256, 1), np.int64)
        for at in range(0, flat.size, histogram.BLOCK):  # of which NumPy makes int64
            part = flat[at : at + histogram.BLOCK] >> 7
            counts += np.bincount(part, minlength=counts.size).reshape(counts.shape)
    return counts.sum(axis=(0, 2))


def marked(
    marks: UInt8[np.ndarray, "*stack rows bytes"],
) -> tuple[np.ndarray, ...]:
    """Indices, in order, of what `jnp.packbits` along the last axis marks; few of many.

    Example:
      >>> marked(np.array([[0, 64], [1, 0]], np.uint8))
      (array([0, 1]), array([9, 7]))
    """
    *before, byte = np.nonzero(marks)
    one, bit = np.nonzero(np.unpackbits(marks[*before, byte][:, None], axis=1))
    return *(index[one] for index in before), 8 * byte[one] + bit


def numbers(codes: UInt16[Array, "*shape"], dtype: Any) -> Shaped[Array, "*shape"]:
    """Of codes; bit for bit as bfloat16."""
    return jax.lax.bitcast_convert_type(codes, jnp.bfloat16).astype(dtype)


def parts(values: Float32[Array, "*shape"], count: int = PARTS) -> list[Float32[Array, "*shape"]]:
    """float32 as a sum of numbers that bfloat16 holds exactly, as matrix units multiply them.

    Three of them are exact. By truncation: a compiler may drop a rounding.
    """
    terms = []
    for _ in range(count):
        bits = jax.lax.bitcast_convert_type(values, jnp.uint32) & np.uint32(0xFFFF0000)
        terms.append(jax.lax.bitcast_convert_type(bits, jnp.float32))
        values = values - terms[-1]
    return terms
