"""Attention on a GPU by cuDNN, of queries anywhere in a cache: what each sees is a mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jentropy import jax_internals

from .caches import visible


def is_there() -> bool:
    """Whether this process has a GPU with cuDNN: JAX asks both while it traces.

    Example:
      >>> is_there() in (True, False)
      True
    """
    return jax_internals.has_cudnn() and jax.default_backend() == "gpu"


def cudnn(
    q: Float[Array, "batch kv_heads group time width"],
    k: Float[Array, "batch kv_heads slots width"],
    v: Float[Array, "batch kv_heads slots width"],
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    window: Int[Array, ""] | int | None,
    sinks: None,
    *,
    scale: float,
    soft_cap: None,
) -> Float[Array, "batch kv_heads group time width"]:
    """As `attending.blockwise`; the mask takes two bytes for every query, key and sequence."""
    del sinks, soft_cap
    batch, _, _, time, width = q.shape
    seen = jnp.broadcast_to(visible(positions, slots, window)[:, 0], (batch, 1, time, k.shape[2]))
    mixed = jax_internals.cudnn_attention(q.reshape(batch, -1, time, width), k, v, seen, scale)
    return mixed.reshape(q.shape)
