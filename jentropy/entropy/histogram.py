"""Exact histograms of codes in jitted JAX, and of few of them in NumPy.

So many codes as a call counts are counted on the device in uint32; calls add up on the host in
int64, so totals are exact for any number of weights, with or without 64-bit JAX. On a CPU one
program counts as many blocks of its argument as it is told to, so that none is compiled for another
size. It takes less than half of NumPy's time for a code, does so while Python goes on, and in every
thread at once; a call takes as long as NumPy does for 10^5 codes.
"""

from __future__ import annotations

from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt, UInt16, UInt32

from jentropy import modes

# Codes that programs are compiled for: a compile takes half a second and 2 MB, what is cut to sizes
# that are there microseconds. Counts of the largest fit uint32 by a wide margin.
PROGRAMS = (1 << 16, 1 << 18, 1 << 20, 1 << 22)
MOST_PADDING = 1 / 4  # of a program, where one of fewer codes is there
SMALL = 1 << 14  # not worth a call of the device
MOST = 1 << 20  # codes of a call on a CPU, the size of its program's argument: more gains little
ALIGNMENT = 64  # bytes, of what XLA takes on a CPU without a copy
FEW = 1 << 17  # not worth that call, whose counts are 2^16 numbers
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


@jax.jit
def _count_blocks(
    blocks: UInt16[Array, "blocks n"], count: Int32[Array, ""]
) -> UInt32[Array, " bins"]:
    """Counts the codes of the first `count` blocks; the others are not read.

    Codes are indices as they are: `total.at` would make int32 of them, whose bounds XLA's loop over
    them then checks, for half of its time.
    """
    places = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
    )
    ones = jnp.ones(blocks.shape[1], jnp.uint32)

    def add(i, total):
        block = jax.lax.dynamic_index_in_dim(blocks, i, keepdims=False)
        return jax.lax.scatter_add(
            total, block[:, None], ones, places, mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
        )

    return jax.lax.fori_loop(0, count, add, jnp.zeros(1 << 16, jnp.uint32))


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


@modes.detached
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
    return begin(codes, bits=bits).result()


class Counting:
    """Counts that XLA may still be making, in a thread of its own.

    Args:
      known: int64[codes], what is known already.
    """

    def __init__(self, known: np.ndarray):
        self._known = known
        self._pending: deque[jax.Array] = deque()

    def expect(self, counts: jax.Array) -> None:
        """Takes uint32[2^16] to add, once they are there; waits for none but the last two."""
        self._pending.append(counts)
        self._settle(2)

    def result(self) -> np.ndarray:
        """All of it. int64[codes]"""
        self._settle(0)
        return self._known

    def _settle(self, most: int) -> None:
        while len(self._pending) > most:
            self._known += np.asarray(self._pending.popleft())[: self._known.size]


def begin(codes: np.ndarray | jax.Array, *, bits: int, size: int | None = None) -> Counting:
    """What `count` does, with what the device does still to be awaited, in `modes.detached_modes`.

    Args:
      codes, bits: as `count` takes them; codes stay as they are until the result is there.
      size: how many of the codes to count, of NumPy's in a `room`; all of them, if not said.

    Returns:
      Counts to be.
    """
    flat = codes.reshape(-1)
    if flat.size > SMALL and (isinstance(flat, jax.Array) or jax.default_backend() != "cpu"):
        return Counting(_on_device(flat[:size], bits))
    return _on_host(np.asarray(flat), bits, flat.size if size is None else size)


def room(size: int) -> np.ndarray:
    """Room for so many codes and perhaps others, which XLA takes without a copy. uint16[more]"""
    if size < FEW:
        return np.empty(size, np.uint16)
    nbytes = -(-size // MOST) * MOST * 2
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes].view(np.uint16)


def _on_host(flat: np.ndarray, bits: int, size: int) -> Counting:
    if flat.itemsize == 1 and size >= PAIRS and flat.flags.c_contiguous:
        even = size & ~1
        pairs = _on_host(flat[:even].view(np.uint16), 16, even // 2).result().reshape(256, 256)
        counts = (pairs.sum(0) + pairs.sum(1))[: 1 << bits]
        return Counting(counts + np.bincount(flat[even:size], minlength=1 << bits))
    begin, end = _run(flat, size)
    known = np.bincount(flat[:begin], minlength=1 << bits)
    for at in range(end, size, BLOCK):
        known += np.bincount(flat[at : min(size, at + BLOCK)], minlength=1 << bits)
    counting = Counting(known)
    for at in range(begin, end, MOST):
        blocks = np.int32(min(end - at, MOST) // _SCATTER_BLOCK)
        counting.expect(_count_blocks(_argument(flat[at : at + MOST]), blocks))
    return counting


def _run(flat: np.ndarray, size: int) -> tuple[int, int]:
    """Where what XLA counts of the first `size` codes begins and ends.

    Whole blocks; of many codes that lie together, from the first on that need not be copied.
    """
    if flat.itemsize != 2:
        return 0, 0
    together = size >= 2 * MOST and flat.flags.c_contiguous
    begin = -flat.ctypes.data % ALIGNMENT // 2 if together else 0
    blocks = (size - begin) // _SCATTER_BLOCK * _SCATTER_BLOCK
    return (begin, begin + blocks) if blocks >= FEW else (0, 0)


def _argument(part: np.ndarray) -> np.ndarray:
    """Codes as an argument of `_count_blocks`: MOST of them, where XLA takes it without a copy."""
    if part.size < MOST or part.ctypes.data % ALIGNMENT or not part.flags.c_contiguous:
        argument = room(MOST)
        argument[: part.size] = part
        part = argument
    return part.reshape(-1, _SCATTER_BLOCK)


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
