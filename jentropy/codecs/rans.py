"""rANS over byte symbols: many independent lanes in step, in jitted JAX.

Terms. A *lane* is a run of up to `LANE` consecutive symbols with a stream of its own: a 32-bit
state and a list of 16-bit words. Lanes do not know of each other, so any number of them, of any
chunks and tensors, code in one call; one `lax.scan` step handles one symbol of every lane.

With frequencies f and cumulative frequencies F that sum to 2^PRECISION, a state x in
[2^16, 2^32) codes symbol s as

    encode: if x >= f << 20: emit x & 0xffff, x >>= 16;   x = (x / f << 12) + x % f + F
    decode: slot = x & 0xfff, s from the slot;            x = f * (x >> 12) + slot - F;
            if x < 2^16: x = x << 16 | next word

The encoder starts at x = 2^16 and takes the symbols last to first, so that the decoder gives them
first to last and ends at x = 2^16: a check that costs nothing.

References:
  Duda, Asymmetric numeral systems, arXiv 1311.2540; Giesen, Interleaved entropy coders,
  arXiv 1402.3392.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, UInt8, UInt16, UInt32

LANE = (
    4096  # symbols of a lane; a longer lane wastes less on its state, a shorter one decodes sooner
)
PRECISION = 12  # bits of a frequency; a slot's table entry then fits one uint32
SLOTS = 1 << PRECISION
LOWER = 1 << 16  # the smallest state, where every lane begins and ends
LANE_BYTES = 6  # what a lane costs beside its words: its state (4) and its word count (2)


def normalize(counts: np.ndarray) -> np.ndarray:
    """Frequencies that sum to SLOTS, at least 1 for every symbol that occurs.

    Integer arithmetic throughout, so that every machine makes the same table.

    Args:
      counts: int[256], how often each symbol occurs; not all zero.

    Returns:
      int64[256].
    """
    counts = np.asarray(counts, np.int64)
    total = int(counts.sum())
    scaled = [int(c) * SLOTS for c in counts]  # Python integers: counts may reach 2^52
    frequency = np.array([max(1, s // total) if s else 0 for s in scaled], np.int64)
    while (surplus := int(frequency.sum()) - SLOTS) > 0:
        # Take from the symbols whose rounding gained most per unit: the largest frequencies.
        order = np.argsort(-frequency, kind="stable")[:surplus]
        order = order[frequency[order] > 1]
        frequency[order] -= 1
    if surplus < 0:
        remainder = np.array([s % total if s >= total else 0 for s in scaled], dtype=object)
        neediest = sorted(np.flatnonzero(counts), key=lambda s: (-remainder[s], s))
        for i in range(-surplus):
            frequency[neediest[i % len(neediest)]] += 1
    return frequency


def decode_table(frequency: np.ndarray) -> np.ndarray:
    """What the decoder looks up: uint32[SLOTS], `symbol << 24 | (f - 1) << 12 | slot - F`."""
    frequency = np.asarray(frequency, np.int64)
    starts = np.cumsum(frequency) - frequency
    symbol = np.repeat(np.arange(frequency.size), frequency)
    offset = np.arange(SLOTS) - starts[symbol]
    return (symbol << 24 | (frequency[symbol] - 1) << PRECISION | offset).astype(np.uint32)


def encode_table(frequency: np.ndarray) -> np.ndarray:
    """What the encoder looks up: uint32[256], `f << 16 | F`."""
    frequency = np.asarray(frequency, np.int64)
    return (frequency << 16 | (np.cumsum(frequency) - frequency) % SLOTS).astype(np.uint32)


@jax.jit
def encode(
    symbols: UInt8[Array, "lanes steps"],
    counts: Int32[Array, lanes] | None,
    tables: UInt32[Array, "tables 256"],
    table_ids: Int32[Array, lanes],
) -> tuple[UInt32[Array, lanes], UInt16[Array, "lanes steps"], Bool[Array, "lanes steps"]]:
    """Codes the first `counts` symbols of each lane, all of them where `counts` is None.

    Returns:
      Final states; words and, of each, whether it is emitted: the stream of a lane is its emitted
      words in order, which is the order that the decoder reads.
    """
    flat, base = tables.reshape(-1), _table_base(tables, table_ids)

    def step(state, inputs):
        index, symbol = inputs
        entry = flat.at[base + symbol.astype(jnp.int32)].get(mode="promise_in_bounds")
        frequency, start = entry >> 16, entry & 0xFFFF
        emit = (state >> (32 - PRECISION)) >= frequency
        if counts is not None:
            emit &= index < counts
        quotient, remainder = _divide(jnp.where(emit, state >> 16, state), frequency)
        coded = (quotient << PRECISION) + remainder + start
        if counts is not None:
            coded = jnp.where(index < counts, coded, state)
        return coded, (state.astype(jnp.uint16), emit)

    lanes, steps = symbols.shape
    initial = jnp.full((lanes,), LOWER, jnp.uint32)
    indices = jnp.arange(steps, dtype=jnp.int32)
    states, (words, emitted) = jax.lax.scan(step, initial, (indices, symbols.T), reverse=True)
    return states, words.T, emitted.T


@partial(jax.jit, static_argnames="steps")
def decode(
    words: UInt16[Array, words],
    offsets: Int32[Array, lanes],
    states: UInt32[Array, lanes],
    counts: Int32[Array, lanes] | None,
    tables: UInt32[Array, "tables 4096"],
    table_ids: Int32[Array, lanes],
    *,
    steps: int,
) -> tuple[UInt8[Array, "lanes steps"], UInt32[Array, lanes], Int32[Array, lanes]]:
    """Decodes the first `counts` symbols of each lane, all where `counts` is None.

    Whatever the words are, nothing outside them is read; what follows a lane's symbols is
    arbitrary.

    Args:
      words: the streams of all lanes.
      offsets: where each lane's stream begins in `words`.

    Returns:
      Symbols; final states, all LOWER if the data are sound; where each lane stopped reading.
    """
    flat, base = tables.reshape(-1), _table_base(tables, table_ids)
    last = words.shape[0] - 1

    def step(carry, index):
        state, pointer = carry
        slot = (state & (SLOTS - 1)).astype(jnp.int32)
        entry = flat.at[base + slot].get(mode="promise_in_bounds")
        frequency = ((entry >> PRECISION) & (SLOTS - 1)) + 1
        moved = frequency * (state >> PRECISION) + (entry & (SLOTS - 1))
        word = words.at[jnp.minimum(pointer, last)].get(mode="promise_in_bounds")
        read = moved < LOWER
        if counts is not None:
            read &= index < counts
        following = jnp.where(read, (moved << 16) | word.astype(jnp.uint32), moved)
        if counts is not None:
            following = jnp.where(index < counts, following, state)
        return (following, pointer + read), (entry >> 24).astype(jnp.uint8)

    (states, pointers), symbols = jax.lax.scan(
        step, (states, offsets), jnp.arange(steps, dtype=jnp.int32)
    )
    return symbols.T, states, pointers


def _table_base(tables: Array, table_ids: Array) -> Array | int:
    """Where each lane's table begins; with one table the lookups need no addition."""
    return table_ids * tables.shape[1] if tables.shape[0] > 1 else 0


def _divide(x: UInt32[Array, "*n"], by: UInt32[Array, "*n"]) -> tuple[Array, Array]:
    """Exact quotient (below 2^20, as a coder's is) and remainder.

    Vector units have no integer division. The float32 quotient is off by one at the most, which
    the remainder shows.
    """
    quotient = (x.astype(jnp.float32) / by.astype(jnp.float32)).astype(jnp.uint32)
    remainder = x - quotient * by
    high = remainder >= np.uint32(1 << 31)
    quotient = jnp.where(high, quotient - 1, quotient)
    remainder = jnp.where(high, remainder + by, remainder)
    low = remainder >= by
    return jnp.where(low, quotient + 1, quotient), jnp.where(low, remainder - by, remainder)
