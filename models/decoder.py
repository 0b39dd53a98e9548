"""A decoder-only transformer in Flax NNX, for every architecture of the Llama family.

Module and attribute names are those of Hugging Face checkpoints, so that the path of a parameter
is its key. The key-value cache is a pytree passed in and out; the modules hold weights only.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jentropy import modes

from .config import DecoderConfig
from .layers import Embed, Linear, RMSNorm
from .rope import inverse_frequencies, rotate

PRECISION = jax.lax.Precision.HIGHEST  # attention in float32 means float32, on a GPU and TPU too
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class LayerCache(NamedTuple):
    """Keys and values of one layer, [batch, capacity, kv_heads, head_dim]."""

    keys: jax.Array
    values: jax.Array


Cache = tuple[LayerCache, ...]


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, queries = config.hidden_size, config.num_heads * config.head_dim
        pairs, bias = config.num_kv_heads * config.head_dim, config.attention_bias
        self.q_proj = Linear(width, queries, use_bias=bias, rngs=rngs)
        self.k_proj = Linear(width, pairs, use_bias=bias, rngs=rngs)
        self.v_proj = Linear(width, pairs, use_bias=bias, rngs=rngs)
        self.o_proj = Linear(queries, width, use_bias=bias, rngs=rngs)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def __call__(
        self, x: Float[Array, "batch time width"], cache: LayerCache, start: Int[Array, ""]
    ) -> tuple[Float[Array, "batch time width"], LayerCache]:
        config = self.config
        batch, time, _ = x.shape
        heads = (batch, time, -1, config.head_dim)
        q, k, v = (p(x).reshape(heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = start + jnp.arange(time)
        frequencies = inverse_frequencies(config.rope, config.head_dim)
        q, k = rotate(q, positions, frequencies), rotate(k, positions, frequencies)
        keys = jax.lax.dynamic_update_slice_in_dim(cache.keys, k, start, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(cache.values, v, start, axis=1)

        grouped = q.reshape(batch, time, config.num_kv_heads, -1, config.head_dim)
        scores = jnp.einsum(
            "btkgd,bskd->bkgts",
            grouped,
            keys,
            precision=PRECISION,
            preferred_element_type=jnp.float32,
        )
        visible = jnp.arange(keys.shape[1])[None, :] <= positions[:, None]
        scores = jnp.where(visible, scores * config.head_dim**-0.5, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bkgts,bskd->btkgd", weights, values, precision=PRECISION)
        return self.o_proj(mixed.reshape(batch, time, -1)), LayerCache(keys, values)


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, use_bias=bias, rngs=rngs)
        self.up_proj = Linear(width, inner, use_bias=bias, rngs=rngs)
        self.down_proj = Linear(inner, width, use_bias=bias, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        return self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and around a residual."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time width"], cache: LayerCache, start: Int[Array, ""]
    ) -> tuple[Float[Array, "batch time width"], LayerCache]:
        attended, cache = self.self_attn(self.input_layernorm(x), cache, start)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Decoder(nnx.Module):
    """Token ids to logits.

    Args:
      config: the architecture.
      compute_dtype: dtype of activations and of the cache; accumulation is float32 either way.
      rngs: source of the initial weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jentropy.models.config import DecoderConfig, RopeConfig
      >>> config = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=1,
      ...     num_heads=2, num_kv_heads=1, head_dim=8, rms_norm_eps=1e-6,
      ...     rope=RopeConfig(theta=1e4), tie_word_embeddings=True)
      >>> model = Decoder(config, compute_dtype=jnp.float32, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((1, 4), jnp.int32)).shape
      (1, 4, 32)
    """

    def __init__(
        self, config: DecoderConfig, *, compute_dtype: DTypeLike = jnp.bfloat16, rngs: nnx.Rngs
    ):
        self.config = config
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.embed_tokens = Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.hidden_size, config.vocab_size, rngs=rngs)
        )

    @modes.standard
    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache for `capacity` positions."""
        config = self.config
        shape = (batch, capacity, config.num_kv_heads, config.head_dim)
        return tuple(
            LayerCache(jnp.zeros(shape, self.compute_dtype), jnp.zeros(shape, self.compute_dtype))
            for _ in range(config.num_layers)
        )

    @modes.standard
    def hidden(
        self,
        input_ids: Int[Array | np.ndarray, "batch time"],
        cache: Cache,
        start: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch time width"], Cache]:
        """Final hidden states of tokens at positions start, start + 1, ..., and the cache."""
        start = jnp.asarray(start, jnp.int32)
        x = self.embed_tokens(input_ids, self.compute_dtype)
        filled = []
        for block, layer in zip(self.layers, cache, strict=True):
            x, layer = block(x, layer, start)
            filled.append(layer)
        return self.norm(x), tuple(filled)

    @modes.standard
    def logits(self, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        """float32 logits of hidden states."""
        if self.lm_head is None:
            return self.embed_tokens.attend(hidden, out_dtype=jnp.float32)
        return self.lm_head(hidden, out_dtype=jnp.float32)

    def __call__(
        self, input_ids: Int[Array | np.ndarray, "batch time"]
    ) -> Float[Array, "batch time vocabulary"]:
        graph, state = nnx.split(self)
        if modes.explicit_mesh(state, input_ids) is None:
            return self._logits_of(input_ids)
        return modes.automatic(
            lambda state, ids: nnx.merge(graph, state)._logits_of(ids),
            state,
            input_ids,
            out=lambda: modes.spec_of(input_ids),
        )

    def _logits_of(
        self, input_ids: Int[Array | np.ndarray, "batch time"]
    ) -> Float[Array, "batch time vocabulary"]:
        batch, time = input_ids.shape
        hidden, _ = self.hidden(input_ids, self.new_cache(batch, time), 0)
        return self.logits(hidden)
