"""XXH3-64 of codes that lie on a device, without a copy of them on the host.

What the stripes of a block of 1024 bytes add to the eight accumulators does not depend on their
state: all blocks of all chunks are computed at once, and what is left is a short loop over the
blocks in which they are stirred. 64-bit numbers are pairs of uint32, the low one first. The
accumulators, 64 bytes a chunk, come to the host, which merges them.

References:
  https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, section "XXH3 Algorithm".
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt16, UInt32

from jentropy import modes

from .tensor import checksum

LEAST_BYTES = 241  # of what XXH3 hashes by stripes; the host takes what is shorter
STRIPE, BLOCK, LANES = 32, 512, 8  # codes of two bytes, and accumulators
GROUP = 256  # chunks that are stirred together at the most
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
PRIMES_32 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
PRIMES_64 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
START = (PRIMES_32[2], *PRIMES_64[:4], PRIMES_32[1], PRIMES_64[4], PRIMES_32[0])
ALL = (1 << 64) - 1
AVALANCHE = 0x165667919E3779F9

Pair = tuple[jax.Array, jax.Array]  # low and high words


def _secret(at: int, count: int) -> np.ndarray:
    """Words of the secret. uint64[count]"""
    return np.frombuffer(SECRET[at : at + 8 * count], "<u8")


def _pair(values: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    words = np.asarray(values, np.uint64)
    return words.astype(np.uint32), (words >> np.uint64(32)).astype(np.uint32)


STRIPE_KEYS = _pair(np.stack([_secret(8 * n, LANES) for n in range(BLOCK // STRIPE)]).reshape(-1))
STIR_KEYS, LAST_KEYS = _pair(_secret(128, LANES)), _pair(_secret(121, LANES))


def _add(a: Pair, b: Pair) -> Pair:
    low = a[0] + b[0]
    return low, a[1] + b[1] + (low < a[0]).astype(jnp.uint32)


def _product(a: jax.Array, b: jax.Array) -> Pair:
    """All 64 bits of products of 32."""
    a_low, a_high, b_low, b_high = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    low, middle = a_low * b_low, a_high * b_low
    middle = middle + (low >> 16)
    other = a_low * b_high + (middle & 0xFFFF)
    return low & 0xFFFF | other << 16, a_high * b_high + (middle >> 16) + (other >> 16)


def _sum(pair: Pair) -> Pair:
    """Sums over the last axis but one, of at most 2^16 numbers."""
    parts = [
        (word >> shift & 0xFFFF).sum(-2, dtype=jnp.uint32) for word in pair for shift in (0, 16)
    ]
    second = parts[1] + (parts[0] >> 16)
    third = parts[2] + (second >> 16)
    fourth = parts[3] + (third >> 16)
    return parts[0] & 0xFFFF | second << 16, third & 0xFFFF | fourth << 16


def _added(codes: jax.Array, keys: tuple[np.ndarray, np.ndarray]) -> Pair:
    """What stripes add to the accumulators.

    Args:
      codes: uint16[stripes * 32].
      keys: uint32[number of keys], repeated until they are used up.

    Returns:
      uint32[stripes * 32 / len(keys) / 4, 8], each the sum of stripes of a set of keys.
    """
    a, b, c, d = (codes[n::4].astype(jnp.uint32).reshape(-1, keys[0].size) for n in range(4))
    data = a | b << 16, c | d << 16
    stirred = _product(data[0] ^ keys[0], data[1] ^ keys[1])
    lanes = (-1, keys[0].size // LANES, LANES)
    summed = _sum((stirred[0].reshape(lanes), stirred[1].reshape(lanes)))
    swapped = (word.reshape(lanes)[..., np.arange(LANES) ^ 1] for word in data)
    low, high = swapped
    return _add(summed, _sum((low, high)))


@jax.jit
def _contributions(codes: UInt16[Array, " size"]) -> tuple[Pair, Pair]:
    """What a chunk's blocks add, uint32[blocks, 8], and what follows them, uint32[8]."""
    size = codes.shape[0]
    blocks = (2 * size - 1) // (2 * BLOCK)
    stripes = (2 * size - 1 - 2 * BLOCK * blocks) // (2 * STRIPE)
    added = _added(codes[: blocks * BLOCK], STRIPE_KEYS)
    low, high = _added(codes[size - STRIPE :], LAST_KEYS)
    tail: Pair = low[0], high[0]
    if stripes:
        keys = STRIPE_KEYS[0][: stripes * LANES], STRIPE_KEYS[1][: stripes * LANES]
        low, high = _added(codes[blocks * BLOCK :][: stripes * STRIPE], keys)
        tail = _add(tail, (low[0], high[0]))
    return added, tail


@jax.jit
def _accumulated(
    added: UInt32[Array, "2 chunks blocks 8"], tails: UInt32[Array, "2 chunks 8"]
) -> UInt32[Array, "2 chunks 8"]:
    """The accumulators of chunks of one length."""

    def stir(state: Pair, block: Pair) -> tuple[Pair, None]:
        low, high = _add(state, block)
        low, high = low ^ high >> 15 ^ STIR_KEYS[0], high ^ STIR_KEYS[1]
        prime = jnp.uint32(PRIMES_32[0])
        product = _product(low, prime)
        return (product[0], product[1] + high * prime), None

    chunks = added.shape[1]
    low, high = (jnp.broadcast_to(jnp.asarray(word), (chunks, LANES)) for word in _pair(START))
    by_block = added.swapaxes(1, 2)
    state, _ = jax.lax.scan(stir, (low, high), (by_block[0], by_block[1]))
    return jnp.stack(_add(state, (tails[0], tails[1])))


def _merged(accumulators: Sequence[int], size: int) -> int:
    """The hash of so many bytes."""
    keys = [int(key) for key in _secret(11, LANES)]
    mixed = [value ^ key for value, key in zip(accumulators, keys, strict=True)]
    result = size * PRIMES_64[0]
    for a, b in zip(mixed[::2], mixed[1::2], strict=True):
        result += (a * b & ALL) ^ (a * b >> 64)
    result &= ALL
    result = (result ^ result >> 37) * AVALANCHE & ALL
    return result ^ result >> 32


@modes.detached
def checksums(chunks: Sequence[jax.Array]) -> list[int]:
    """`tensor.checksum` of each of some arrays on a device.

    Args:
      chunks: uint16[size] each.

    Example:
      >>> codes = np.arange(1000, dtype=np.uint16)
      >>> checksums([jnp.asarray(codes)]) == [checksum(codes)]
      True
    """
    by_size: dict[int, list[int]] = {}
    for place, chunk in enumerate(chunks):
        by_size.setdefault(chunk.size, []).append(place)
    found: dict[int, int] = {}
    pending = []
    for size, places in by_size.items():
        if 2 * size < LEAST_BYTES:
            found |= {place: checksum(np.asarray(chunks[place])) for place in places}
            continue
        for at in range(0, len(places), GROUP):
            group = places[at : at + GROUP]
            pending.append((group, size, _of_one_size([chunks[place] for place in group])))
    for group, size, accumulated in pending:  # after the last call: nothing waits before
        low, high = np.asarray(accumulated).astype(np.uint64)
        words = (low | high << np.uint64(32))[: len(group)].tolist()
        found |= {p: _merged(word, 2 * size) for p, word in zip(group, words, strict=True)}
    return [found[place] for place in range(len(chunks))]


def _of_one_size(chunks: Sequence[jax.Array]) -> jax.Array:
    """Their accumulators, filled up to a power of two, so that few programs are compiled."""
    parts = [_contributions(chunk) for chunk in chunks]
    parts += [parts[0]] * ((1 << (len(parts) - 1).bit_length()) - len(parts))
    added = jnp.stack([jnp.stack([part[0][word] for part in parts]) for word in (0, 1)])
    tails = jnp.stack([jnp.stack([part[1][word] for part in parts]) for word in (0, 1)])
    return _accumulated(added, tails)
