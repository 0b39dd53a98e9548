"""A chunk of codec `context` that fills a call, decoded in one kernel of a CPU: lanes and raw bits.

What a kernel of its own for each would write and read again stays in the cache, and a core that
decodes a chunk waits for no other.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8, UInt16, UInt32

from . import rans, rawbits
from .kernels import in_one_kernel


@partial(jax.jit, static_argnames="bits")
def decode(
    words: UInt16[Array, 2**k],
    states: UInt32[Array, lanes],
    pointers: UInt32[Array, lanes],
    tables: UInt32[Array, 2**k],
    contexts: UInt8[Array, "steps lanes"],
    mask: UInt8[Array, ""],
    first: UInt16[Array, ""],
    planes: list[UInt8[Array, plane]],
    *,
    bits: int,
) -> tuple[
    UInt16[Array, "blocks *halves fine"],
    UInt8[Array, "steps lanes"],
    UInt32[Array, lanes],
    UInt32[Array, lanes],
]:
    """Codes of every lane, in order, and what `rans.decode` returns.

    Args:
      words, states, pointers, tables: as of `rans.decode`.
      mask: a symbol has table `context & mask`.
      first: of the plan.
      planes: of `bits` raw bits; of the first one the bytes that initial states carry are not used.
    """

    def kernel(words, states, pointers, tables, contexts, mask, first, *planes):
        symbols, final, reached = rans.decoded(words, states, pointers, tables, contexts, mask)
        low = jax.lax.bitcast_convert_type(final.astype(jnp.uint16), jnp.uint8).reshape(-1)
        carried = jax.lax.dynamic_update_slice(planes[0], low, (np.int32(0),))
        codes = rawbits.merged(symbols, contexts, [carried, *planes[1:]], first, bits=bits)
        return codes, symbols, final, reached

    given = words, states, pointers, tables, contexts, mask, first
    return in_one_kernel(kernel, *given, *planes)
