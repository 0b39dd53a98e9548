"""Codes cut into a coded top and raw bits, and put together again, in jitted JAX.

A code's *top* is what lies above `bits` low ones; of a signed code the sign is not part of it, and
is the highest raw bit instead. Raw bits are cut into *planes* of 8, 4, 2 and 1 bits that add to
`bits`, lowest bits first. A plane of width b takes blocks of 64 codes: byte j of the 8 b bytes of a
block has codes j, j + 8 b, j + 16 b, ... of the block, lowest first, which vector units split
without crossing bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt, UInt8, UInt16

BLOCK = 64  # codes
# Factors that bring each part of a byte to its top; uint16 has no variable shift on AVX2.
_FACTORS = {8: [1], 4: [16, 1], 2: [64, 16, 4, 1], 1: [128, 64, 32, 16, 8, 4, 2, 1]}


def widths(bits: int) -> list[int]:
    """Widths of the planes that raw bits are cut into, lowest bits first."""
    return [8] * (bits // 8) + [b for b in (4, 2, 1) if bits & b]


def plane_bytes(size: int, width: int) -> int:
    """Bytes of a plane of `size` codes."""
    return -(-size // BLOCK) * 8 * width


def padded(size: int) -> int:
    """Sizes that programs are compiled for: 2^k and 3 * 2^k, from 4096 on."""
    k = max(12, (size - 1).bit_length())
    return 3 << (k - 2) if k > 12 and size <= 3 << (k - 2) else 1 << k


@partial(jax.jit, static_argnames=("bits", "signed"))
def split(
    codes: UInt[Array, n],
    contexts: UInt8[Array, n_or_one],
    first: UInt16[Array, ""],
    count: UInt16[Array, ""],
    *,
    bits: int,
    signed: bool,
) -> tuple[UInt8[Array, n], list[UInt8[Array, plane]]]:
    """Symbols top - first - context, `count` for those below 0 or not below it; planes.

    Args:
      codes: a multiple of BLOCK of them.
    """
    width = 8 * codes.dtype.itemsize
    wide = jnp.uint32 if codes.dtype.itemsize == 4 else jnp.uint16
    codes = codes.astype(wide)
    if signed:
        low = bits - 1
        top = (codes & ((1 << (width - 1)) - 1)) >> low
        raw = codes & ((1 << low) - 1) | (codes >> (width - 1)) << low
    else:
        top, raw = codes >> bits, codes & ((1 << bits) - 1)
    symbols = top - first.astype(wide) - contexts.astype(wide)
    symbols = jnp.minimum(symbols, count.astype(wide))  # what is below 0 has wrapped
    planes, below = [], 0
    for b in widths(bits):
        parts = ((raw >> below) & ((1 << b) - 1)).astype(jnp.uint8).reshape(-1, 8 // b, 8 * b)
        plane = parts[:, 0]
        for i in range(1, 8 // b):
            plane = plane | parts[:, i] << (i * b)
        planes.append(plane.reshape(-1))
        below += b
    return symbols.astype(jnp.uint8), planes


@partial(jax.jit, static_argnames=("bits", "signed", "dtype"))
def merge(
    symbols: UInt8[Array, n],
    contexts: UInt8[Array, n_or_one],
    planes: list[UInt8[Array, plane]],
    first: UInt16[Array, ""],
    *,
    bits: int,
    signed: bool,
    dtype: str,
) -> UInt[Array, n]:
    """Codes of symbols (top - first - context) and planes: the inverse of `split`."""
    kind = jnp.dtype(dtype)
    wide = jnp.uint16 if kind.itemsize < 4 else jnp.uint32
    raw = jax.lax.platform_dependent(
        *planes,
        tpu=lambda *planes: _raw_by_rows(planes, bits, wide),
        default=lambda *planes: _raw_by_factors(planes, bits, wide),
    )
    value = symbols.astype(wide) + contexts.astype(wide) + first.astype(wide)
    if signed:
        low, sign = bits - 1, 8 * kind.itemsize - 1
        value = value << low & ((1 << sign) - 1) | raw & ((1 << low) - 1) | (raw >> low) << sign
    else:
        value = value << bits | raw
    return value.astype(kind)


def _raw_by_factors(planes: Sequence[UInt8[Array, plane]], bits: int, wide: Any) -> UInt[Array, n]:
    """Raw bits of planes; parts of a byte are brought to its top by products."""
    ways = max(8 // b for b in widths(bits))  # parts of a block in the narrowest plane
    fine = BLOCK // ways
    raw, below = jnp.zeros((), wide), 0
    for width, plane in zip(widths(bits), planes, strict=True):
        own = 8 // width
        factors = np.repeat(np.array(_FACTORS[width], np.uint16), ways // own).astype(wide)
        part = plane.astype(wide).reshape(-1, 1, ways // own, fine)
        part = part * factors.reshape(1, own, ways // own, 1)
        part = (part >> (8 - width)) & ((1 << width) - 1)
        raw = raw | part.reshape(-1, ways, fine) << below
        below += width
    return raw.reshape(-1)


def _raw_by_rows(planes: Sequence[UInt8[Array, plane]], bits: int, wide: Any) -> UInt[Array, n]:
    """The same with a block to a row, of which a TPU's compiler makes a program 20 times sooner."""
    place = np.arange(BLOCK, dtype=np.uint32)
    raw, below = jnp.zeros((), jnp.uint32), 0
    for width, plane in zip(widths(bits), planes, strict=True):
        octets = plane.reshape(-1, 8 * width).astype(jnp.uint32)
        part = jnp.concatenate([octets] * (8 // width), axis=1)
        raw = raw | ((part >> (place // (8 * width) * width)) & ((1 << width) - 1)) << below
        below += width
    return raw.astype(wide).reshape(-1)


def with_top(codes: Any, top: Any, bits: int) -> Any:
    """Signed codes of 16 bits with another top; NumPy or JAX arrays, uint16."""
    kept = np.uint16(1 << 15 | (1 << (bits - 1)) - 1)
    return codes & kept | top << np.uint16(bits - 1) & np.uint16(0x7FFF)
