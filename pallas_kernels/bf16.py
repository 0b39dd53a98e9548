"""What the layouts of BF16 share: windows of exponents, and numbers of codes."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt16

from jentropy.codecs import window12
from jentropy.formats import Format

BIAS = 127  # of an exponent
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


def numbers(codes: UInt16[Array, "*shape"], dtype: Any) -> Shaped[Array, "*shape"]:
    """Of codes; bit for bit as bfloat16."""
    return jax.lax.bitcast_convert_type(codes, jnp.bfloat16).astype(dtype)
