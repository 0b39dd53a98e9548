"""Exact histograms of codes in jitted JAX, and of few of them in NumPy.

So many codes as a call counts are counted on the device in uint32; calls add up on the host in
int64, so totals are exact for any number of weights, with or without 64-bit JAX. On a CPU a call
takes as long as NumPy does for 10^5 codes; it counts in two thirds of NumPy's time what lies where
XLA reads it without a copy, and in every thread at once, where NumPy holds the interpreter.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt, UInt32

from jentropy import modes

# Codes that programs are compiled for: a compile takes half a second and 2 MB, what is cut to sizes
# that are there microseconds. Counts of the largest fit uint32 by a wide margin.
PROGRAMS = (1 << 16, 1 << 18, 1 << 20, 1 << 22)
MOST_PADDING = 1 / 4  # of a program, where one of fewer codes is there
SMALL = 1 << 14  # not worth a call of the device
ON_HOST = (1 << 20, 1 << 22)  # the same on a CPU
ALIGNMENT = 64  # bytes, of what XLA takes on a CPU without a copy
BLOCK = 1 << 19  # numbers that NumPy counts at a time; it makes int64 of them
PAIRS = 1 << 17  # bytes that are worth counting two at a time, in 2^16 places
_SCATTER_BLOCK = 1 << 14  # codes of one scatter
_MATMUL_BLOCK = 1 << 14  # codes of one one-hot product; its counts are exact in float32


@modes.detached
@partial(jax.jit, static_argnames="bits")
def _count(codes: UInt[Array, " n"], *, bits: int) -> UInt32[Array, " bins"]:
    return jax.lax.platform_dependent(
        codes,
        tpu=partial(_count_by_matmul, bits=bits),
        default=partial(_count_by_scatter, bits=bits),
    )


def _count_by_scatter(codes: UInt[Array, " n"], *, bits: int) -> UInt32[Array, " bins"]:
    """A block at a time: what a scatter reads then stays in a core's cache (3 times as fast)."""

    def add(total, part):
        return total.at[part.astype(jnp.int32)].add(1, mode="promise_in_bounds"), None

    block = codes.shape[0] if codes.shape[0] % _SCATTER_BLOCK else _SCATTER_BLOCK
    total = jnp.zeros(1 << bits, jnp.uint32)
    return jax.lax.scan(add, total, codes.reshape(-1, block))[0]


def _count_by_matmul(codes: UInt[Array, " n"], *, bits: int) -> UInt32[Array, " bins"]:
    """One-hot of the high bits against one-hot of the low bits: no scatter, which a TPU lacks."""
    low = bits // 2
    high_values = jnp.arange(1 << (bits - low), dtype=jnp.int32)[None]
    low_values = jnp.arange(1 << low, dtype=jnp.int32)[None]
    count = codes.shape[0]
    block = min(_MATMUL_BLOCK, count)
    padded = jnp.pad(codes.astype(jnp.int32), (0, -count % block), constant_values=1 << bits)

    def add(total, part):
        high = (part[:, None] >> low == high_values).astype(jnp.bfloat16)
        rest = (part[:, None] & ((1 << low) - 1) == low_values).astype(jnp.bfloat16)
        product = jnp.dot(high.T, rest, preferred_element_type=jnp.float32)
        return total + product.astype(jnp.uint32), None

    start = jnp.zeros((high_values.size, low_values.size), jnp.uint32)
    return jax.lax.scan(add, start, padded.reshape(-1, block))[0].reshape(-1)


def count(codes: np.ndarray | jax.Array, *, bits: int) -> np.ndarray:
    """How often each code occurs.

    Args:
      codes: unsigned integers of any shape, all below 2^bits; of a memory map a part is in
        memory at a time. Those of JAX are counted on the device that they are on.
      bits: width of a code, at most 16.

    Returns:
      int64[2^bits].

    Example:
      >>> import numpy as np
      >>> count(np.array([0, 1, 1, 3], np.uint8), bits=2)
      array([1, 2, 0, 1])
    """
    flat = codes.reshape(-1)
    if flat.size > SMALL and (isinstance(flat, jax.Array) or jax.default_backend() != "cpu"):
        return _on_device(flat, bits)
    return _on_host(np.asarray(flat), bits)


def _on_host(flat: np.ndarray, bits: int) -> np.ndarray:
    total = np.zeros(1 << bits, np.int64)
    if flat.itemsize == 1 and flat.size >= PAIRS and flat.flags.c_contiguous:
        even = flat.size & ~1
        pairs = _on_host(flat[:even].view(np.uint16), 16).reshape(256, 256)
        total += (pairs.sum(0) + pairs.sum(1))[: total.size]
        flat = flat[even:]
    begin, end = _aligned(flat) if bits == 16 else (0, 0)
    at = begin
    while at < end:
        size = max(size for size in ON_HOST if size <= end - at)
        total += jax.device_get(_count(flat[at : at + size], bits=bits))
        at += size
    for part in flat[:begin], flat[end:]:
        for at in range(0, part.size, BLOCK):
            total += np.bincount(part[at : at + BLOCK], minlength=total.size)
    return total


def _aligned(flat: np.ndarray) -> tuple[int, int]:
    """Where a run of ON_HOST's sizes begins and ends; empty of what is small or strided."""
    if flat.itemsize != 2 or not flat.flags.c_contiguous:
        return 0, 0
    start = -flat.ctypes.data % ALIGNMENT // flat.itemsize
    return start, start + max(0, flat.size - start) // ON_HOST[0] * ON_HOST[0]


def _on_device(flat: np.ndarray | jax.Array, bits: int) -> np.ndarray:
    total, start = np.zeros(1 << bits, np.int64), 0
    while start < flat.size:
        left = flat.size - start
        if left <= SMALL:
            return total + np.bincount(np.asarray(flat[start:]), minlength=1 << bits)
        size = _program(left)
        part = flat[start : start + size]
        part = part if isinstance(part, jax.Array) else np.asarray(part)
        padding = size - part.size  # counted, and taken off
        pad = jnp.pad if isinstance(part, jax.Array) else np.pad
        filled = pad(part, (0, padding)) if padding else part
        total += jax.device_get(_count(filled, bits=bits))
        total[0] -= padding
        start += part.size
    return total


def _program(left: int) -> int:
    """Codes of the program for what is left: one that holds it all and little else, or is full."""
    whole = next((size for size in PROGRAMS if size >= left), PROGRAMS[-1])
    if whole - left <= whole * MOST_PADDING:
        return whole
    return max((size for size in PROGRAMS if size <= left), default=PROGRAMS[0])
