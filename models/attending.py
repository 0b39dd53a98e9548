"""The sum over keys: softmax(q k^T) v, of grouped queries, as far as every query sees.

A query sees the keys of positions up to its own, and of a window no others. Scores and their
softmax are float32; weights are rounded to the values' dtype before they are multiplied.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PRECISION = jax.lax.Precision.HIGHEST  # attention in float32 means float32, on a GPU and TPU too


def attend(
    q: Float[Array, "batch time heads width"],
    k: Float[Array, "batch slots kv_heads width"],
    v: Float[Array, "batch slots kv_heads value_width"],
    *,
    scale: float,
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    window: Int[Array, ""] | int | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
) -> Float[Array, "batch time heads value_width"]:
    """Mixes the values of the keys that each query sees.

    Args:
      q: queries; heads i * heads / kv_heads and following share keys i.
      k: keys.
      v: values, which may be wider or narrower than keys.
      scale: of the products of queries and keys.
      positions: int32[time], or [batch, time], of the queries.
      slots: int32[slots], or [batch, slots]: positions of the keys; negative where there is none.
      window: positions that a query sees, its own included; None: all before it.
      soft_cap: scores are soft_cap * tanh(score / soft_cap), as in Gemma 2.
      sinks: a score per head that takes its share of the softmax and adds nothing, as in gpt-oss.

    Returns:
      Sums in the dtype of `v`.

    Example:
      >>> k = v = jnp.eye(3)[None, :, None]
      >>> order = jnp.arange(3)
      >>> out = attend(jnp.ones((1, 3, 2, 3)), k, v, scale=1.0, positions=order, slots=order)
      >>> out[0, :, 0].tolist()[:2]
      [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    """
    batch, time, heads, width = q.shape
    grouped = q.reshape(batch, time, k.shape[2], -1, width)
    scores = scale * jnp.einsum(
        "btkgd,bskd->bkgts",
        grouped,
        k,
        precision=PRECISION,
        preferred_element_type=jnp.float32,
    )
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    seen = visible(positions, slots, window)
    scores = jnp.where(seen if seen.ndim == 2 else seen[:, None, None], scores, -jnp.inf)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(*scores.shape[1:3], 1, 1)
        sink = jnp.broadcast_to(sink, (*scores.shape[:-1], 1))
        scores = jnp.concatenate((scores, sink), axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : k.shape[1]].astype(v.dtype)
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights, v, precision=PRECISION)
    return mixed.reshape(batch, time, heads, v.shape[-1])


def visible(
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    window: Int[Array, ""] | int | None,
) -> Bool[Array, "*both time slots"]:
    """Which keys each query sees, as of `attend`."""
    before = positions[..., :, None] - slots[..., None, :]
    seen = (before >= 0) & (slots >= 0)[..., None, :]
    return seen if window is None else seen & (before < window)
