"""Grouped-query attention with rotary positions, over all tokens before or a window of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .cache import Cache
from .config import DecoderConfig, Layer
from .layers import Linear, RMSNorm
from .rope import rotate

PRECISION = jax.lax.Precision.HIGHEST  # attention in float32 means float32, on a GPU and TPU too


class Turn(NamedTuple):
    """What a layer is told beside its weights: numbers, so that layers share a program.

    Attributes:
      at: int32[]: its place in the stacks of weights and caches.
      start: int32[]: position of the first token.
      frequencies: float32[head_dim / 2]: of its rotary positions, radians per position.
      window: int32[]: positions that a token sees, its own included; counts in sliding layers only.
    """

    at: jax.Array
    start: jax.Array
    frequencies: jax.Array
    window: jax.Array


class Attention(nnx.Module):
    """Grouped-query attention.

    Args:
      config: sizes, biases and norms.
      layer: whether it slides, and how far at the most.
      rngs: source of the initial weights.
    """

    def __init__(self, config: DecoderConfig, layer: Layer, *, rngs: nnx.Rngs):
        self.config, self.window = config, layer.window
        width, queries = config.hidden_size, config.num_heads * config.head_dim
        pairs, bias = config.num_kv_heads * config.head_dim, config.attention_bias
        self.q_proj = Linear(width, queries, use_bias=bias, rngs=rngs)
        self.k_proj = Linear(width, pairs, use_bias=bias, rngs=rngs)
        self.v_proj = Linear(width, pairs, use_bias=bias, rngs=rngs)
        self.o_proj = Linear(queries, width, use_bias=config.output_bias, rngs=rngs)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def new_cache(self, layers: int, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
        """An empty cache of keys and values, of every position or of the window's."""
        slots = capacity if self.window is None else min(capacity, self.window)
        empty = jnp.zeros(
            (layers, batch, slots, self.config.num_kv_heads, self.config.head_dim), dtype
        )
        return Cache(arrays=(empty, empty), sliding=self.window is not None)

    def __call__(
        self, x: Float[Array, "batch time width"], cache: Cache, turn: Turn
    ) -> tuple[Float[Array, "batch time width"], Cache]:
        config = self.config
        batch, time, _ = x.shape
        heads = (batch, time, -1, config.head_dim)
        q, k, v = (p(x).reshape(heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = turn.start + jnp.arange(time)
        q, k = (rotate(each, positions, turn.frequencies) for each in (q, k))
        cache, (keys, values), seen = cache.extend(turn.at, turn.start, (k, v))

        grouped = q.reshape(batch, time, config.num_kv_heads, -1, config.head_dim)
        scores = jnp.einsum(
            "btkgd,bskd->bkgts",
            grouped,
            keys,
            precision=PRECISION,
            preferred_element_type=jnp.float32,
        )
        visible = _visible(seen, positions, turn.window if cache.sliding else None)
        scores = jnp.where(visible, scores * config.head_dim**-0.5, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bkgts,bskd->btkgd", weights, values, precision=PRECISION)
        return self.o_proj(mixed.reshape(batch, time, -1)), cache


def _visible(
    seen: Int[Array, " slots"], positions: Int[Array, " time"], window: Int[Array, ""] | None
) -> Array:
    """bool[time, slots]: whether a token at a position sees what is in a slot."""
    before = positions[:, None] - seen
    if window is None:
        return before >= 0
    return (before >= 0) & (before < window) & (seen >= 0)
