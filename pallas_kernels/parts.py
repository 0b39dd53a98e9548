"""float32 by way of bfloat16: numbers as sums that the matrix units multiply exactly."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, BFloat16, Float, Float32

PARTS = 3  # bfloat16 numbers that a float32 is the sum of


def bf16_parts(numbers: Float32[Array, "*shape"], count: int) -> list[Float32[Array, "*shape"]]:
    """float32 as a sum of numbers that bfloat16 holds exactly; three of them are exact.

    By truncation: a compiler may drop a rounding.
    """
    parts = []
    for _ in range(count):
        bits = lax.bitcast_convert_type(numbers, jnp.uint32) & np.uint32(0xFFFF0000)
        parts.append(lax.bitcast_convert_type(bits, jnp.float32))
        numbers = numbers - parts[-1]
    return parts


def split(x: Float[Array, "M K"], count: int) -> BFloat16[Array, "rows K"]:
    """x as bfloat16, its parts below each other: the weight is read once for all."""
    return (x if count == 1 else jnp.concatenate(bf16_parts(x, count))).astype(jnp.bfloat16)


def join(y: Float[Array, "rows N"], count: int) -> Float[Array, "M N"]:
    """The product of x from those of its parts."""
    return y if count == 1 else y.reshape(count, -1, y.shape[1]).sum(0)
