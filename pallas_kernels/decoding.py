"""A resident weight to the numbers in it, by the kernels of its layout or in plain JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from jentropy import modes

from . import fused, reference
from .resident import ResidentTensor, expect_weight


def decode_tensor(
    w: ResidentTensor, dtype: Any = None, interpret: Any = False
) -> Shaped[Array, "*shape"]:
    """The dense weight, or stack of them; arguments and errors are those of `api.decode`."""
    expect_weight(w)
    numbers = jnp.dtype(w.dtype if dtype is None else dtype)
    return modes.automatic(lambda w: decode_part(w, numbers, interpret), w, out=PartitionSpec)


@modes.standard
def decode_part(w: ResidentTensor, dtype: np.dtype, interpret: Any) -> Shaped[Array, "*shape"]:
    """As `decode_tensor`, where meshes are automatic already."""
    if not w.record.has_kernels:
        return reference.decode(w, dtype)
    if w.stack:
        return jax.lax.map(lambda i: decode_part(w[i], dtype, interpret), jnp.arange(w.stack[0]))
    packed = fused.decode(w, dtype, interpret)
    return packed.T if w.transposed else packed
