"""A chunk of codec `context` that fills a call, in one kernel of a CPU: lanes and raw bits.

What kernels of their own would write and read again stays in the cache, and a thread that codes a
chunk waits for no other.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8, UInt16, UInt32

from . import rans, rawbits
from .kernels import in_one_kernel


@partial(jax.jit, static_argnames="bits")
def decode(
    words: UInt16[Array, " words"],
    states: UInt32[Array, " lanes"],
    pointers: UInt32[Array, " lanes"],
    tables: UInt32[Array, " slots"],
    contexts: UInt8[Array, "steps lanes"],
    mask: UInt8[Array, ""],
    first: UInt16[Array, ""],
    planes: list[UInt8[Array, " _"]],
    *,
    bits: int,
) -> tuple[
    UInt16[Array, "blocks *halves fine"],
    UInt8[Array, "steps lanes"],
    UInt32[Array, " lanes"],
    UInt32[Array, " lanes"],
]:
    """Codes of every lane, in order, and what `rans.decode` returns.

    Args:
      words, states, pointers, tables: as of `rans.decode`.
      mask: a symbol has table `context & mask`.
      first: of the head.
      planes: of `bits` raw bits; of the first one the bytes that initial states carry are not used.
    """

    def kernel(words, states, pointers, tables, contexts, mask, first, *planes):
        streams = words, states, pointers, tables
        symbols, final, reached = rans.decoded(*streams, contexts, mask, contexts.shape[0])
        low = jax.lax.bitcast_convert_type(final.astype(jnp.uint16), jnp.uint8).reshape(-1)
        codes = rawbits.merge_slabs(symbols, contexts, planes, low, first, bits=bits)
        return codes, symbols, final, reached

    return in_one_kernel(kernel, words, states, pointers, tables, contexts, mask, first, *planes)


@partial(jax.jit, static_argnames=("shape", "bits"))
def encode(
    codes: UInt16[Array, " n"],
    contexts: UInt8[Array, " n"],
    mask: UInt8[Array, ""],
    first: UInt16[Array, ""],
    count: UInt16[Array, ""],
    tables: UInt32[Array, " rows"],
    *,
    shape: tuple[int, int],
    bits: int,
) -> tuple[
    tuple[UInt32[Array, " lanes"], UInt16[Array, "lanes steps"], Bool[Array, "lanes steps"]],
    UInt8[Array, " n"],
    list[UInt8[Array, " _"]],
]:
    """What `rans.encode` returns of all lanes; symbols and planes, as of `rawbits.split`.

    Args:
      mask: a symbol has table `context & mask`.
      first, count: of the head.
      tables: as of `rans.encode`.
      shape: steps and lanes.
    """

    def kernel(codes, contexts, mask, first, count, tables):
        symbols, planes = rawbits.split_slabs(codes, contexts, first, count, bits=bits)
        carried = jax.lax.slice(planes[0], (0,), (2 * shape[1],)).reshape(-1, 2)
        low = jax.lax.bitcast_convert_type(carried, jnp.uint16).astype(jnp.uint32)
        grids = symbols.reshape(shape), contexts.reshape(shape)
        coded = rans.encoded(*grids, mask, low | rans.LOWER, tables, np.int32(shape[0]))
        return coded, symbols, planes

    return in_one_kernel(kernel, codes, contexts, mask, first, count, tables)
