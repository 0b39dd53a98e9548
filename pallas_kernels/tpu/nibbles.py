"""Codes of four bits in words, so that few operations make bytes of float8_e5m2 of them.

Where instructions convert float4_e2m1fn, words are plain: nibble i of word r is row 8 r + i. Other
words have eight rows of a column: byte t has one of the first four, A[t], and one of the second
four, B[t], each a sign and three bits. In a byte of E5M2 the sign is bit 7, and the three bits are
3 to 1, which are the two low bits of the exponent and the high one of the mantissa:

    A =  word                      & 0x8E8E8E8E
    B = (word >> 3 ^ word << 7)    & 0x8E8E8E8E

So A lies in the word as it is. What the shifts bring in from other bytes has been added (xor) to
the bits of B that are stored, 6 to 4 and, for its sign, 0.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8, UInt32

from jentropy.pallas_kernels.tiles import SUBLANES

BYTES = 4  # of a word
ROWS = 2 * BYTES * SUBLANES  # that a register of words has: 32 of A, then 32 of B
KEPT = 0x8E


def four(byte: int) -> np.uint32:
    """A byte in all four places of a word."""
    return np.uint32(byte * 0x01010101)


def bytes_of(words: UInt32[Array, "*shape"]) -> tuple[Array, Array]:
    """A and B: a byte for each row, sign and three bits in the places of E5M2."""
    second = words >> np.uint32(3) ^ words << np.uint32(7)
    return words & four(KEPT), second & four(KEPT)


def merged(
    first: UInt32[Array, "*shape"], second: UInt32[Array, "*shape"]
) -> UInt32[Array, "*shape"]:
    """Words of A and B: the inverse of `bytes_of`."""
    low = (second & four(0x0E)) << 3 ^ (first << 8 & four(0x0C)) << 2
    low ^= (low << 8 & four(0x10)) << 2
    sign = (second & four(0x80)) >> 7 ^ (first >> 8 & four(0x04)) >> 2
    return first | low | sign


def pack(codes: UInt8[Array, "rows columns"]) -> UInt32[Array, "words columns"]:
    """Words of codes (sign and three bits), eight rows of words for 64 rows.

    Word row 8 g + i has in byte t of A row 64 g + 4 i + t, and of B the 32nd row after it.
    """
    placed = (codes & 7) << 1 | (codes & 8) << 4
    halves = placed.astype(np.uint32).reshape(-1, 2, SUBLANES, BYTES, codes.shape[-1])
    words = sum((halves[:, :, :, t] << (8 * t) for t in range(1, BYTES)), halves[:, :, :, 0])
    return merged(words[:, 0], words[:, 1]).reshape(-1, codes.shape[-1])


def unpack(words: UInt32[Array, "words columns"]) -> UInt8[Array, "rows columns"]:
    """The codes: the inverse of `pack`."""
    halves = jnp.stack(bytes_of(words.reshape(-1, SUBLANES, words.shape[-1])), axis=1)
    placed = jnp.stack([(halves >> (8 * t)).astype(jnp.uint8) for t in range(BYTES)], axis=3)
    placed = placed.reshape(-1, words.shape[-1])
    return placed >> 1 & 7 | placed >> 4 & 8


def pack_plain(codes: UInt8[Array, "rows columns"]) -> UInt32[Array, "words columns"]:
    """Words of codes as they are."""
    eight = codes.astype(jnp.uint32).reshape(-1, 2 * BYTES, codes.shape[-1])
    return sum((eight[:, i] << (4 * i) for i in range(1, 2 * BYTES)), eight[:, 0])


def unpack_plain(words: UInt32[Array, "words columns"]) -> UInt8[Array, "rows columns"]:
    """The codes: the inverse of `pack_plain`."""
    eight = [(words >> (4 * i)).astype(jnp.uint8) & 0xF for i in range(2 * BYTES)]
    return jnp.stack(eight, axis=1).reshape(-1, words.shape[-1])
