"""Grouped-query attention with rotary positions, over all tokens before or a window of them.

A layer makes the cache that it needs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .attending import attend
from .caches import Cache, Turn
from .config import DecoderConfig, Layer
from .layers import Linear, RMSNorm
from .placing import how_lies
from .rope import rotate


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
        self.scale = config.attention_scale or config.head_dim**-0.5
        sinks = jnp.zeros((config.num_heads,))
        self.sinks = nnx.Param(sinks) if config.attention_sinks else None
        if config.qk_norm:
            self.q_norm = RMSNorm.of(config, queries if config.qk_norm_whole else config.head_dim)
            self.k_norm = RMSNorm.of(config, pairs if config.qk_norm_whole else config.head_dim)

    def new_cache(self, layers: int, batch: int, capacity: int, dtype: DTypeLike) -> Cache:
        """An empty cache of keys and values, of every position or of the window's."""
        slots = capacity if self.window is None else min(capacity, self.window)
        shape = (layers, batch, self.config.num_kv_heads, slots, self.config.head_dim)
        arrays = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
        return Cache(arrays=arrays, sliding=self.window is not None)

    def __call__(
        self, x: Float[Array, "batch time width"], cache: Cache, turn: Turn
    ) -> tuple[Float[Array, "batch time width"], Cache]:
        config = self.config
        batch, time, _ = x.shape
        heads = (batch, time, -1, config.head_dim)
        q, k, v = (project(x) for project in (self.q_proj, self.k_proj, self.v_proj))
        if config.qk_norm and config.qk_norm_whole:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (each.reshape(heads) for each in (q, k, v))
        if config.qk_norm and not config.qk_norm_whole:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = turn.positions(time)
        q, k = (rotate(each, positions, turn.frequencies, turn.amplitude) for each in (q, k))
        weights = (one.weight.get_value() for one in (self.k_proj, self.o_proj))
        lies = how_lies(weights, batch, config.num_kv_heads)
        # Heads first, as the cache has them; no product takes them in another order.
        q, k, v = jax.lax.optimization_barrier([each.swapaxes(1, 2) for each in (q, k, v)])
        cache, seen = cache.extend(turn, (k, v), sharded=lies is not None)

        mixed = attend(
            q,
            *seen.arrays,
            scale=self.scale,
            positions=positions,
            slots=seen.slots,
            in_order=seen.in_order,
            window=turn.window if cache.sliding else None,
            soft_cap=config.attention_soft_cap,
            lies=lies,
            sinks=None if self.sinks is None else self.sinks.get_value(),
        )
        return self.o_proj(mixed.swapaxes(1, 2).reshape(batch, time, -1)), cache
