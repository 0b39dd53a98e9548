"""Grouped-query attention with rotary positions, over all tokens before or a window of them.

A layer makes the cache that it needs. The caches of layers of one kind lie in one stack, which a
loop over the layers updates in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from .attending import attend
from .config import DecoderConfig, Layer
from .layers import Linear, RMSNorm
from .rope import rotate


class Turn(NamedTuple):
    """What a layer is told beside its weights: numbers, so that layers share a program.

    Attributes:
      at: its place in the stacks of weights and caches.
      start: position of the first token.
      frequencies: of its rotary positions, radians per position.
      amplitude: of their cosines and sines.
      window: positions that a token sees, its own included; of layers that slide.
    """

    at: Int[Array, ""]
    start: Int[Array, ""]
    frequencies: Float[Array, " pairs"]
    amplitude: Float[Array, ""]
    window: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What layers of a kind remember of the tokens before.

    Attributes:
      arrays: [layers, batch, capacity, ...] each, such as keys and values.
      sliding: whether position p lies in slot p % capacity, so that the last ones only are kept;
        else it lies in slot p.
    """

    arrays: tuple[Any, ...]
    sliding: bool = field(default=False, metadata={"static": True})

    def extend(
        self, turn: Turn, new: Sequence[jax.Array]
    ) -> tuple[Cache, list[jax.Array], Int[Array, " slots"]]:
        """Adds tokens to one layer's part.

        Args:
          new: [batch, time, ...] each, as `arrays`.

        Returns:
          The cache; what the layer's tokens may see of each array, [batch, slots, ...]; and the
          position of every slot: negative or greater than a token's own where it holds nothing.
        """
        slots = jnp.arange(capacity := self.arrays[0].shape[2])
        positions = turn.start + jnp.arange(new[0].shape[1])
        arrays, seen, first = [], [], jnp.int32(0)
        for array, entries in zip(self.arrays, new, strict=True):
            chex.assert_equal_shape_suffix((array, entries), array.ndim - 3)
            if self.sliding:
                layer = jax.lax.dynamic_index_in_dim(array, turn.at, keepdims=False)
                seen.append(jnp.concatenate((layer, entries), axis=1))
                kept = layer.at[:, positions[-capacity:] % capacity].set(entries[:, -capacity:])
                array = jax.lax.dynamic_update_index_in_dim(array, kept, turn.at, 0)
            else:
                where = (turn.at, first, turn.start, *(first for _ in array.shape[3:]))
                array = jax.lax.dynamic_update_slice(array, entries[None], where)
                seen.append(jax.lax.dynamic_index_in_dim(array, turn.at, keepdims=False))
            arrays.append(array)
        if self.sliding:
            before = turn.start - 1 - (turn.start - 1 - slots) % capacity
            slots = jnp.concatenate((before, positions))
        return replace(self, arrays=tuple(arrays)), seen, slots


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
        shape = (layers, batch, slots, self.config.num_kv_heads, self.config.head_dim)
        empty = jnp.zeros(shape, dtype)
        return Cache(arrays=(empty, empty), sliding=self.window is not None)

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
        positions = turn.start + jnp.arange(time)
        q, k = (rotate(each, positions, turn.frequencies, turn.amplitude) for each in (q, k))
        cache, (keys, values), slots = cache.extend(turn, (k, v))

        mixed = attend(
            q,
            keys,
            values,
            scale=self.scale,
            positions=positions,
            slots=slots,
            window=turn.window if cache.sliding else None,
            soft_cap=config.attention_soft_cap,
            sinks=None if self.sinks is None else self.sinks.get_value(),
        )
        return self.o_proj(mixed.reshape(batch, time, -1)), cache
