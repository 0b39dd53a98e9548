"""Resident weights to dense arrays, on any backend.

To add a backend: give it a layout in `resident.LAYOUTS`, a module with `decode` and `take_rows`
here, one with `matmul` in `decode_matmul/`, and a line in `BACKENDS` of both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from jentropy.pallas_kernels.resident import ResidentTensor

from . import reference

BACKENDS = {"reference": reference}


def decode(w: ResidentTensor | jax.Array) -> Shaped[Array, "*shape"]:
    """The dense weight, every code of it: NaN payloads, -0 and subnormals included.

    Args:
      w: a resident weight; a dense array is returned as it is.

    Returns:
      An array of the weight's shape and dtype.

    Example:
      >>> import jax.numpy as jnp, jentropy
      >>> dense = jnp.arange(32, dtype=jnp.bfloat16).reshape(2, 16)
      >>> bool((jentropy.decode(jentropy.to_resident(dense)) == dense).all())
      True
    """
    if not isinstance(w, ResidentTensor):
        return jnp.asarray(w)
    return BACKENDS[w.backend].decode(w)


def take_rows(
    w: ResidentTensor | jax.Array, ids: Int[Array, "*batch"]
) -> Shaped[Array, "*batch columns"]:
    """Rows `ids` of a matrix; of a resident one only those rows are decoded.

    Ids outside the matrix are clipped to it, as `jnp.take(mode="clip")` does.
    """
    if not isinstance(w, ResidentTensor):
        return jnp.take(w, ids, axis=0, mode="clip")
    return BACKENDS[w.backend].take_rows(w, ids)
