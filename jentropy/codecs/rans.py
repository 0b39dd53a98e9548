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

On CPU the loop bodies are shaped for XLA's runtime (measured: 1,180 million symbols a second on two
cores, 530 without): at most eight kernels a step, more would run as tasks on a thread pool;
unsigned indices into arrays of 2^k under a mask, so that nothing is clamped; the state written by
`dynamic_update_slice`, since any other fusion that sees 512 KB is split over threads in every step;
barriers against computing a lookup once per user.

References:
  Duda, Asymmetric numeral systems, arXiv 1311.2540; Giesen, Interleaved entropy coders,
  arXiv 1402.3392.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, UInt8, UInt16, UInt32

LANE = 8192  # symbols of a lane: a longer one wastes less on its state, a shorter decodes sooner
PRECISION = 12  # bits of a frequency; a slot's table entry then fits one uint32
SLOTS = 1 << PRECISION
LOWER = 1 << 16  # the smallest state
FEW = 16  # tables whose slots a 16-bit index reaches

_ROW = lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0,), start_index_map=(0,))


def _take(array: Array, index: Array) -> Array:
    """array[index] for unsigned indices that are in bounds."""
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(array, index[..., None], _ROW, (1,), mode=mode)


@jax.jit
def decode(
    words: UInt16[Array, 2**k],
    states: UInt32[Array, lanes],
    pointers: UInt32[Array, lanes],
    tables: UInt32[Array, 2**k],
    numbers: UInt8[Array, "steps lanes"],
) -> tuple[UInt8[Array, "steps lanes"], UInt32[Array, lanes], UInt32[Array, lanes]]:
    """Decodes `steps` symbols of every lane.

    Whatever the words are, nothing outside them is read.

    Args:
      pointers: index of each lane's next word.
      tables: `symbol << 24 | (f - 1) << 12 | slot - F` at `number << 12 | slot`; a power of two
        of them.
      numbers: of each symbol's table.

    Returns:
      Symbols; states and pointers afterwards. A sound lane is below 2 LOWER and at the end of its
      words.
    """
    mask = np.uint32(words.shape[0] - 1)
    few = tables.shape[0] == FEW * SLOTS

    def step(carry, number):
        held, found, pointer = carry
        state = held[0]
        slot = state & (SLOTS - 1)
        if few:
            index = slot.astype(jnp.uint16) | number.astype(jnp.uint16) << PRECISION
            entry = _take(tables, index)
        else:
            index = (number.astype(jnp.uint32) << PRECISION | slot) & (tables.shape[0] - 1)
            found = lax.dynamic_update_slice(found, _take(tables, index)[None], (0, 0))
            entry = found[0]
        frequency = ((entry >> PRECISION) & (SLOTS - 1)) + 1
        moved = lax.optimization_barrier(frequency * (state >> PRECISION) + (entry & (SLOTS - 1)))
        pointer = lax.optimization_barrier(pointer + (moved < LOWER).astype(jnp.uint32))
        # The word before the new pointer: the old one need not be kept.
        word = _take(words, (pointer - 1) & mask).astype(jnp.uint32)
        state = jnp.where(moved < LOWER, moved << 16 | word, moved)
        held = lax.dynamic_update_slice(held, state[None], (0, 0))
        return (held, found, pointer), (entry >> 24).astype(jnp.uint8)

    held = jnp.stack([states, states])  # the second row is there so that the update stays one
    start = held, jnp.zeros_like(held), pointers
    (held, _, pointers), symbols = lax.scan(step, start, numbers)
    return symbols, held[0], pointers


@jax.jit
def encode(
    symbols: UInt8[Array, "steps lanes"],
    numbers: UInt8[Array, "steps lanes"],
    initial: UInt32[Array, lanes],
    tables: UInt32[Array, tables_times_256],
) -> tuple[UInt32[Array, lanes], UInt16[Array, "lanes steps"], Bool[Array, "lanes steps"]]:
    """Codes every symbol of every lane.

    Args:
      numbers: of each symbol's table.
      tables: `f << 16 | F` at `number << 8 | symbol`; f = 4096 leaves every state alone.

    Returns:
      Final states; words and whether each is emitted: a lane's stream is its emitted words in
      order, which is the order that the decoder reads.
    """

    def step(state, given):
        symbol, number = given
        entry = number.astype(jnp.uint16) << 8 | symbol
        found = lax.optimization_barrier(_take(tables, entry))
        frequency = found >> 16
        emit = (state >> (32 - PRECISION)) >= frequency
        quotient, remainder = _divide(jnp.where(emit, state >> 16, state), frequency)
        coded = (quotient << PRECISION) + remainder + (found & 0xFFFF)
        return coded, (state.astype(jnp.uint16), emit)

    states, (words, emitted) = lax.scan(step, initial, (symbols, numbers), reverse=True)
    return states, words.T, emitted.T


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
    quotient = jnp.where(high, quotient - 1, quotient)
    remainder = jnp.where(high, remainder + by, remainder)
    low = remainder >= by
    return jnp.where(low, quotient + 1, quotient), jnp.where(low, remainder - by, remainder)
