"""window12: BF16 in 12 bits a weight at a fixed rate, for weights that rest in device memory.

A BF16 code is `sign 1 | exponent 8 | mantissa 7`. A trained tensor uses about 15 exponents; its
*window* is the 15 exponents `top - 14 ... top` that hold the most weights. A weight becomes

    slot: s 0000 cccc mmmmmmm   (16 bits, bits 14 to 11 free),  c = exponent - (top - 15)

with c = 1..15 inside the window. A zero keeps its sign and has c = 0, m = 0. Everything else
(exponents outside the window, subnormals, NaN, Inf) is an *escape*: its slot is 0 and its code
stands in a list beside.

Two slots make a pair (uint32, first slot in the low half) of which 24 bits are used, so three
words carry a fourth pair: eight weights in three uint32.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt16, UInt32

WINDOW = 15  # exponents in the window; c = 0 is kept for zeros and escapes
GROUP = 8  # weights that share WORDS words
WORDS = 3

_USED = 0x87FF87FF  # bits of a pair that carry slots
# The fourth pair, 24 bits, in the free bits of the other three: (word, bits of the pair, shift).
_FOURTH = ((0, 0x000F000F, 11), (1, 0x00F000F0, 7), (2, 0x07000700, 3), (2, 0x80008000, -1))


def choose_top(exponent_counts: Any) -> Any:
    """Tops of the windows with the fewest escapes.

    Args:
      exponent_counts: int[..., 256], how many weights have each exponent field; NumPy or JAX.

    Returns:
      int[...]: the largest exponents of the windows, in 15..254; the lowest of equals. Exponents 0
      and 255 are never in one.

    Example:
      >>> counts = np.zeros(256, np.int64)
      >>> counts[110:125] = 1
      >>> int(choose_top(counts))
      124
    """
    xp: Any = np if isinstance(exponent_counts, np.ndarray) else jnp
    sums = xp.cumsum(exponent_counts[..., 1:255], axis=-1)  # [i]: exponents 1 .. i + 1
    below = xp.concatenate([xp.zeros_like(sums[..., :1]), sums[..., :-WINDOW]], axis=-1)
    return xp.argmax(sums[..., WINDOW - 1 :] - below, axis=-1) + WINDOW


def _classify(codes: UInt16[Array, "*shape"], top: Array | int) -> tuple[Array, Array, Array]:
    """Rank in the window (wraps outside it), which are inside, which are zero."""
    exponent = (codes >> 7) & 0xFF
    rank = exponent - (jnp.asarray(top, jnp.uint16) - np.uint16(WINDOW))
    inside = (rank >= 1) & (rank <= WINDOW)
    return rank, inside, (codes & 0x7FFF) == 0


def is_escape(codes: UInt16[Array, "*shape"], top: Array | int) -> Bool[Array, "*shape"]:
    """Which codes have no slot.

    Args:
      codes: of BF16 weights.
      top: of the window.

    Example:
      >>> is_escape(jnp.array([0x3F80, 0x8000, 0x7F80], jnp.uint16), 127).tolist()  # 1, -0, Inf
      [False, False, True]
    """
    _, inside, zero = _classify(codes, top)
    return ~(inside | zero)


def to_slots(codes: UInt16[Array, "*shape"], top: Array | int) -> UInt16[Array, "*shape"]:
    """Slots of codes; 0 where `is_escape`.

    Args:
      codes: of BF16 weights.
      top: of the window.

    Example:
      >>> [hex(slot) for slot in to_slots(jnp.array([0x3F80, 0x8000], jnp.uint16), 127).tolist()]
      ['0x780', '0x8000']
    """
    rank, inside, zero = _classify(codes, top)
    return jnp.where(inside, (codes & 0x807F) | (rank << 7), jnp.where(zero, codes, 0))


def from_slots(slots: UInt16[Array, "*shape"], top: Array | int) -> UInt16[Array, "*shape"]:
    """Codes of slots; an escape's is 0.

    Args:
      slots: as `to_slots` gives them.
      top: of the window.

    Example:
      >>> [hex(code) for code in from_slots(jnp.array([0x780, 0x8000], jnp.uint16), 127).tolist()]
      ['0x3f80', '0x8000']
    """
    rank = slots & 0x0780
    base = (jnp.asarray(top, jnp.uint16) - np.uint16(WINDOW)) << 7
    return jnp.where(rank == 0, slots, slots + base)


def pack(pairs: UInt32[Array, "*shape 4"]) -> UInt32[Array, "*shape 3"]:
    """Four pairs of slots into three words.

    Example:
      >>> pairs = jnp.array([0x07800780, 0x80000001, 0, 0x00010002], jnp.uint32)
      >>> bool((unpack(pack(pairs)) == pairs).all()), pack(pairs).shape
      (True, (3,))
    """
    words = [pairs[..., i] for i in range(WORDS)]
    fourth = pairs[..., WORDS]
    for word, bits, shift in _FOURTH:
        part = fourth & np.uint32(bits)
        words[word] = words[word] | (
            part << np.uint32(shift) if shift > 0 else part >> np.uint32(-shift)
        )
    return jnp.stack(words, axis=-1)


def unpack(words: UInt32[Array, "*shape 3"]) -> UInt32[Array, "*shape 4"]:
    """Three words into four pairs of slots.

    Example:
      >>> unpack(jnp.zeros((5, 3), jnp.uint32)).shape
      (5, 4)
    """
    return jnp.stack(unpack_words(*(words[..., i] for i in range(WORDS))), axis=-1)


def unpack_words(
    first: UInt32[Array, "*shape"], second: UInt32[Array, "*shape"], third: UInt32[Array, "*shape"]
) -> tuple[UInt32[Array, "*shape"], ...]:
    """Three words into four pairs of slots, each an array of its own: for kernels.

    Args:
      first, second, third: words of as many groups.

    Example:
      >>> [pairs.shape for pairs in unpack_words(*jnp.zeros((3, 7), jnp.uint32))]
      [(7,), (7,), (7,), (7,)]
    """
    words = first, second, third
    fourth = []
    for word, bits, shift in _FOURTH:
        part = words[word] >> np.uint32(shift) if shift > 0 else words[word] << np.uint32(-shift)
        fourth.append(part & np.uint32(bits))
    return *(word & np.uint32(_USED) for word in words), functools.reduce(operator.or_, fourth)
