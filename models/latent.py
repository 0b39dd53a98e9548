"""Multi-head latent attention: keys and values of all heads come from one short latent per token.

The cache holds the latents and the key's rotary part, which all heads share: [kv_lora_rank +
qk_rope_head_dim] numbers a token, of DeepSeek-V3 576 where keys and values of its heads are 40,960.

    expanded  keys and values are made of the latents of every slot, then heads attend as always;
              of many slots block by block, as the sums go on, and of none that no query sees
    absorbed  q is taken to the latents' space, heads share the latents as their one key and value,
              and what they mix is taken to values

Both are the same sums in another order. The absorbed form multiplies wider vectors and makes no
keys: it is taken for few queries, as in generation, whose cost else grows with every slot times
the whole of kv_b_proj. It reads that matrix as [heads, ...]: decoded for the layer at hand, which
is once per token either way, and never kept.

References:
  DeepSeek-V2, arXiv 2405.04434.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jentropy import pallas_kernels as kernels

from .attending import PRECISION, Scoring, attend, blockwise
from .caches import Cache, Turn
from .config import DecoderConfig, Layer
from .layers import Linear, RMSNorm
from .placing import how_lies
from .rope import rotate

MADE_AT_ONCE = 1 << 28  # bytes of keys and values; of more, those of blocks
NORM_EPS = 1e-6  # of the latents' norms, whatever the config says of the others


class LatentAttention(nnx.Module):
    """Attention over latents.

    Args:
      config: sizes, among them `config.latent`, and biases.
      layer: one that sees all tokens before.
      rngs: source of the initial weights.
    """

    def __init__(self, config: DecoderConfig, layer: Layer, *, rngs: nnx.Rngs):
        assert config.latent is not None
        self.config, self.sizes = config, (sizes := config.latent)
        width, heads, bias = config.hidden_size, config.num_heads, config.attention_bias
        linear = partial(Linear, rngs=rngs)
        norm = partial(RMSNorm, eps=NORM_EPS)
        keys = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim
        if sizes.q_lora_rank is None:
            self.q_proj = linear(width, heads * keys)
        else:
            self.q_a_proj = linear(width, sizes.q_lora_rank, use_bias=bias)
            self.q_a_layernorm = norm(sizes.q_lora_rank)
            self.q_b_proj = linear(sizes.q_lora_rank, heads * keys)
        latent, values = sizes.kv_lora_rank, sizes.v_head_dim
        self.kv_a_proj_with_mqa = linear(width, latent + sizes.qk_rope_head_dim, use_bias=bias)
        self.kv_a_layernorm = norm(latent)
        self.kv_b_proj = linear(latent, heads * (sizes.qk_nope_head_dim + values))
        self.o_proj = linear(heads * values, width, use_bias=config.output_bias)
        self.scale = keys**-0.5 * config.rope.attention_scale

    def new_cache(self, layers: int, batch: int, capacity: int, dtype: DTypeLike) -> Cache:
        """An empty cache of latents and rotary keys."""
        width = self.sizes.kv_lora_rank + self.sizes.qk_rope_head_dim
        return Cache(arrays=(jnp.zeros((layers, batch, capacity, width), dtype),))

    def __call__(
        self, x: Float[Array, "batch time width"], cache: Cache, turn: Turn
    ) -> tuple[Float[Array, "batch time width"], Cache]:
        sizes, (batch, time, _) = self.sizes, x.shape
        positions = turn.positions(time)
        turned = partial(
            rotate,
            positions=positions,
            frequencies=turn.frequencies,
            amplitude=turn.amplitude,
            interleaved=sizes.rope_interleave,
        )
        q = self._queries(x).reshape(batch, time, self.config.num_heads, -1)
        q, rotary = jnp.split(q, [sizes.qk_nope_head_dim], axis=-1)
        latent, key = jnp.split(self.kv_a_proj_with_mqa(x), [sizes.kv_lora_rank], axis=-1)
        key = turned(key[:, :, None])[:, :, 0]
        new = jnp.concatenate((self.kv_a_layernorm(latent), key), axis=-1)
        absorbs = sizes.absorbs(time)
        weights = (one.weight.get_value() for one in (self.kv_b_proj, self.o_proj))
        lies = how_lies(weights, batch, 1 if absorbs else self.config.num_heads)
        cache, seen = cache.extend(turn, (new,), sharded=lies is not None)
        mix: Any = self._absorbed if absorbs else self._expanded
        mixed = mix(
            q,
            turned(rotary),
            *seen.arrays,
            partial(
                attend,
                scale=self.scale,
                positions=positions,
                slots=seen.slots,
                in_order=seen.in_order,
                lies=lies,
            ),
        )
        return self.o_proj(mixed.swapaxes(1, 2).reshape(batch, time, -1)), cache

    def _queries(self, x: Array) -> Array:
        if self.sizes.q_lora_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def _expanded(self, q: Array, rotary: Array, seen: Array, attends: partial[Array]) -> Array:
        q, seen = jnp.concatenate((q, rotary), axis=-1).swapaxes(1, 2), seen[:, None]
        made, told = jax.eval_shape(self._made, seen), attends.keywords
        if sum(one.size * one.dtype.itemsize for one in made) <= MADE_AT_ONCE:
            return attends(q, *self._made(seen))
        positions, scoring = told["positions"], Scoring(told["scale"], None)
        sums = partial(blockwise, window=None, sinks=None, scoring=scoring, make=self._made)
        return sums(q[:, :, None], seen, None, positions, told["slots"])[:, :, 0]

    def _made(self, seen: Float[Array, "batch 1 slots width"]) -> tuple[Array, Array]:
        """Keys and values of all heads, [batch, heads, slots, ...]."""
        heads, sizes = self.config.num_heads, self.sizes
        latents, key = jnp.split(seen[:, 0], [sizes.kv_lora_rank], axis=-1)
        made = self.kv_b_proj(latents).reshape(*latents.shape[:2], heads, -1).swapaxes(1, 2)
        keys, values = jnp.split(made, [sizes.qk_nope_head_dim], axis=-1)
        shared = jnp.broadcast_to(key[:, None], (*keys.shape[:3], key.shape[-1]))
        return jnp.concatenate((keys, shared), axis=-1), values

    def _absorbed(self, q: Array, rotary: Array, seen: Array, attends: partial[Array]) -> Array:
        weight = _decoded(self.kv_b_proj.weight.get_value())
        by_head = weight.reshape(self.config.num_heads, -1, weight.shape[-1])
        to_keys, to_values = jnp.split(by_head, [self.sizes.qk_nope_head_dim], axis=1)
        q = _by_head("bthd,hdr->bhtr", q, to_keys)
        q, seen = jnp.concatenate((q, rotary.swapaxes(1, 2)), axis=-1), seen[:, None]
        mixed = attends(q, seen, seen[..., : self.sizes.kv_lora_rank])
        return _by_head("bhtr,hdr->bhtd", mixed, to_values)


def _decoded(
    weight: kernels.ResidentTensor | kernels.ShardedTensor | Array,
) -> Shaped[Array, "rows columns"]:
    """The dense matrix, every bit of it, as products of the reference backend see it."""
    number_format = getattr(weight, "number_format", None)  # of dense ones none
    scaled = number_format is not None and not number_format.is_plain
    dense = kernels.decode(weight, jnp.float32 if scaled else None)
    return jax.lax.optimization_barrier(dense)


def _by_head(sum_over: str, x: Array, weight: Array) -> Array:
    dtype = jnp.promote_types(x.dtype, weight.dtype)
    y = jnp.einsum(
        sum_over,
        x.astype(dtype),
        weight.astype(dtype),
        precision=PRECISION,
    )
    return y.astype(x.dtype)
