"""rANS over byte symbols in jitted JAX: many independent lanes in step.

Terms. A *lane* has a 32-bit state and a list of 16-bit words. Symbol i of a chunk is in lane i mod
L, step i div L, so that what a step yields is in order already and nothing is transposed. Lanes do
not know of each other: any number of them, of any chunks and tensors, code in one call. Every
symbol has a table of its own choice.

With frequencies f and cumulative frequencies F that sum to 2^PRECISION, a state x in
[2^16, 2^32) codes symbol s as

    encode: if x >= f << 20: emit x & 0xffff, x >>= 16;   x = (x / f << 12) + x % f + F
    decode: slot = x & 0xfff, s from the slot;            x = f * (x >> 12) + slot - F;
            if x < 2^16: x = x << 16 | next word

The encoder starts at a state below 2^17, whose low 16 bits carry payload, and takes the symbols
last to first, so that the decoder gives them first to last and ends where the encoder began.

On CPU a loop is one kernel (`in_one_kernel`) whose body is shaped for LLVM and XLA's runtime
(measured, of one core: 700 million symbols a second, 510 as a kernel for each fusion): unsigned
indices of 32 bits (of 16 they take a fifth more time) into arrays of 2^k under a mask, so that
nothing is clamped; the state written by `dynamic_update_slice`, which keeps it one loop that
nothing is fused across; barriers against computing a lookup once per user. Should XLA stop knowing
of such kernels, a step is eight at most, beyond which they would run as tasks on a thread pool.

References:
  Duda, Asymmetric numeral systems, arXiv 1311.2540; Giesen, Interleaved entropy coders,
  arXiv 1402.3392.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32, UInt8, UInt16, UInt32

from .kernels import in_one_kernel, repeat

LANE = 8192  # symbols of a lane: a longer one wastes less on its state, a shorter decodes sooner
PRECISION = 12  # bits of a frequency; a slot's table entry then fits one uint32
SLOTS = 1 << PRECISION
LOWER = 1 << 16  # the smallest state
FEW = 16  # tables of a decoder's smallest program
SLAB = 64  # rows that are transposed at a time

_ROW = lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0,), start_index_map=(0,))


def _take(array: Array, index: Array) -> Array:
    """array[index] for unsigned indices that are in bounds."""
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(array, index[..., None], _ROW, (1,), mode=mode)


def _row(array: Array, index: Any) -> Array:
    """array[index]"""
    row = lax.dynamic_slice(array, (index, np.int32(0)), (1, array.shape[1]))
    return lax.squeeze(row, (0,))


def _with_row(array: Array, row: Array, index: Any) -> Array:
    """array with array[index] = row"""
    return lax.dynamic_update_slice(array, row[None], (index, np.int32(0)))


@jax.jit
def decode(
    words: UInt16[Array, " words"],
    states: UInt32[Array, " lanes"],
    pointers: UInt32[Array, " lanes"],
    tables: UInt32[Array, " slots"],
    table_ids: UInt8[Array, "steps lanes"],
    reach: Int32[Array, ""] | None = None,
) -> tuple[UInt8[Array, "steps lanes"], UInt32[Array, " lanes"], UInt32[Array, " lanes"]]:
    """Decodes `steps` symbols of every lane.

    Whatever the words are, nothing outside them is read.

    Args:
      words: a power of two of them.
      pointers: index of each lane's next word.
      tables: `symbol << 24 | (f - 1) << 12 | slot - F` at `table << 12 | slot`; a power of two
        of them.
      table_ids: of each symbol's table.
      reach: steps that are taken, so that one program does few of them as well; None: all.

    Returns:
      Symbols; states and pointers afterwards. A sound lane is below 2 LOWER and at the end of its
      words.
    """
    arrays = words, states, pointers, tables, table_ids, np.uint8(255)
    return in_one_kernel(decoded, *arrays, table_ids.shape[0] if reach is None else reach)


def decoded(
    words: UInt16[Array, " words"],
    states: UInt32[Array, " lanes"],
    pointers: UInt32[Array, " lanes"],
    tables: UInt32[Array, " slots"],
    contexts: UInt8[Array, "steps lanes"],
    mask: UInt8[Array, ""],
    reach: Any,
) -> tuple[UInt8[Array, "steps lanes"], UInt32[Array, " lanes"], UInt32[Array, " lanes"]]:
    """`decode`, to be part of a kernel; a symbol has table `context & mask`."""
    last = np.uint32(words.shape[0] - 1)

    def step(i, carry):
        kept, pointer, symbols = carry
        state = _row(kept, np.int32(0))
        table = lax.bitwise_and(_row(contexts, i), lax.broadcast(mask, states.shape))
        slot = state & (SLOTS - 1)
        index = (table.astype(jnp.uint32) << PRECISION | slot) & (tables.shape[0] - 1)
        entry = _take(tables, index)
        frequency = ((entry >> PRECISION) & (SLOTS - 1)) + 1
        moved = frequency * (state >> PRECISION) + (entry & (SLOTS - 1))
        moved = lax.optimization_barrier(moved)
        reads = moved < LOWER
        pointer = lax.optimization_barrier(pointer + reads.astype(jnp.uint32))
        # The word before the new pointer: the old one need not be kept.
        word = _take(words, (pointer - 1) & last).astype(jnp.uint32)
        kept = _with_row(kept, lax.select(reads, moved << 16 | word, moved), np.int32(0))
        symbols = _with_row(symbols, (entry >> 24).astype(jnp.uint8), i)
        return kept, pointer, symbols

    # The second row is there so that the update stays one.
    kept = lax.broadcast_in_dim(states, (2, *states.shape), (1,))
    symbols = lax.full(contexts.shape, 0, jnp.uint8)
    kept, pointers, symbols = repeat(reach, step, (kept, pointers, symbols))
    return symbols, _row(kept, np.int32(0)), pointers


@jax.jit
def encode(
    symbols: UInt8[Array, "steps lanes"],
    table_ids: UInt8[Array, "steps lanes"],
    initial: UInt32[Array, " lanes"],
    tables: UInt32[Array, " rows"],
    reach: Int32[Array, ""] | None = None,
) -> tuple[UInt32[Array, " lanes"], UInt16[Array, "lanes steps"], Bool[Array, "lanes steps"]]:
    """Codes every symbol of every lane.

    Args:
      table_ids: of each symbol's table.
      tables: `f << 16 | F` at `table << 8 | symbol`; f = 4096 leaves every state alone.
      reach: steps that are taken, the last of them first; None: all.

    Returns:
      Final states; words and whether each is emitted: a lane's stream is its emitted words in
      order, which is the order that the decoder reads.
    """

    def elsewhere(*arrays: Any) -> tuple[Array, Array, Array]:
        states, words, emitted = _coded(*arrays)
        return states, words.T, emitted.T

    arrays = symbols, table_ids, np.uint8(255), initial, tables
    steps = np.int32(symbols.shape[0]) if reach is None else reach
    return in_one_kernel(encoded, *arrays, steps, elsewhere=elsewhere)


def encoded(
    symbols: UInt8[Array, "steps lanes"],
    contexts: UInt8[Array, "steps lanes"],
    mask: UInt8[Array, ""],
    initial: UInt32[Array, " lanes"],
    tables: UInt32[Array, " rows"],
    reach: Any,
) -> tuple[UInt32[Array, " lanes"], UInt16[Array, "lanes steps"], Bool[Array, "lanes steps"]]:
    """`encode`, to be part of a kernel; a symbol has table `context & mask`."""
    states, words, emitted = _coded(symbols, contexts, mask, initial, tables, reach)
    return states, _transposed(words, reach), _transposed(emitted, reach)


def _coded(
    symbols: Array, contexts: Array, mask: Array, initial: Array, tables: Array, reach: Any
) -> tuple[Array, Array, Array]:
    steps, lanes = symbols.shape

    def step(i, carry):
        state, words, emitted = carry
        at = reach - np.int32(1) - i
        table = lax.bitwise_and(_row(contexts, at), lax.broadcast(mask, (lanes,)))
        place = table.astype(jnp.uint16) << 8 | _row(symbols, at).astype(jnp.uint16)
        entry = lax.optimization_barrier(_take(tables, place))
        frequency = entry >> 16
        emit = (state >> (32 - PRECISION)) >= frequency
        kept = lax.select(emit, state >> 16, state)
        quotient, remainder = _divide(kept, frequency)
        words = _with_row(words, state.astype(jnp.uint16), at)
        emitted = _with_row(emitted, emit, at)
        return (quotient << PRECISION) + remainder + (entry & 0xFFFF), words, emitted

    words = lax.full((steps, lanes), 0, jnp.uint16)
    return repeat(reach, step, (initial, words, lax.full((steps, lanes), False, jnp.bool_)))


def _transposed(array: Array, reach: Any) -> Array:
    """array.T, a slab at a time, so that a line of the cache is fetched once.

    Args:
      reach: rows; 0 of all others is what they are taken for.
    """
    rows, columns = array.shape
    slab = math.gcd(rows, SLAB)

    def step(i, out):
        part = lax.dynamic_slice(array, (i * np.int32(slab), np.int32(0)), (slab, columns))
        part = lax.transpose(part, (1, 0))
        return lax.dynamic_update_slice(out, part, (np.int32(0), i * np.int32(slab)))

    slabs = lax.div(reach + np.int32(slab - 1), np.int32(slab))
    return repeat(slabs, step, lax.full((columns, rows), 0, array.dtype))


def _divide(x: UInt32[Array, "*n"], by: UInt32[Array, "*n"]) -> tuple[Array, Array]:
    """Exact quotient (below 2^20, as a coder's is) and remainder.

    Vector units have no integer division, and AVX2 turns only signed integers to floats: half of x
    is divided by half of `by`. The quotient is off by one at the most, which the remainder shows:
    the bit that x loses counts for 1 / by, and float32 rounds by less than a quarter, but not at
    all where by = 1.
    """
    half_x, half_by = (x >> 1).astype(jnp.int32), by.astype(jnp.int32).astype(jnp.float32) * 0.5
    quotient = (half_x.astype(jnp.float32) / half_by).astype(jnp.int32).astype(jnp.uint32)
    remainder = x - quotient * by
    high = remainder >= np.uint32(1 << 31)
    quotient = lax.select(high, quotient - 1, quotient)
    remainder = lax.select(high, remainder + by, remainder)
    low = remainder >= by
    return lax.select(low, quotient + 1, quotient), lax.select(low, remainder - by, remainder)
