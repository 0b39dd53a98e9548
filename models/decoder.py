"""A decoder-only transformer in Flax NNX, for every architecture of the Llama family.

Names of parts are those of Hugging Face checkpoints. Layers of one kind are one module, a stack:
`model.layers[kind]` has the weights of all of them, with the layers as the first axis of every one
(see `kinds`). The key-value cache is a pytree passed in and out; the modules hold weights only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jentropy import modes
from jentropy.errors import InputError

from .attention import Attention
from .caches import Cache, Turn
from .config import NORMS, DecoderConfig, Layer
from .experts import Experts
from .kinds import members_of, run, take
from .latent import LatentAttention
from .layers import MLP, Embed, Linear, RMSNorm, scaled, soft_capped
from .rope import frequencies_at


class Block(nnx.Module):
    """Attention and MLP, each within norms and around a residual."""

    def __init__(self, config: DecoderConfig, layer: Layer, *, rngs: nnx.Rngs):
        self.norms, self.multiplier = NORMS[config.norms], config.residual_multiplier
        for name in filter(None, self.norms):
            setattr(self, name, RMSNorm.of(config, config.hidden_size))
        attention = LatentAttention if config.latent else Attention
        self.self_attn = attention(config, layer, rngs=rngs)
        self.mlp = (Experts if layer.routed else MLP)(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time width"], cache: Cache, turn: Turn
    ) -> tuple[Float[Array, "batch time width"], Cache]:
        before, after, before_mlp, after_mlp = map(self._norm, self.norms)
        attended, cache = self.self_attn(before(x), cache, turn)
        x = x + scaled(after(attended), self.multiplier)
        return x + scaled(after_mlp(self.mlp(before_mlp(x))), self.multiplier), cache

    def _norm(self, name: str | None) -> Callable[[jax.Array], jax.Array]:
        return getattr(self, name) if name else lambda x: x


class Decoder(nnx.Module):
    """Token ids to logits.

    Args:
      config: the architecture.
      compute_dtype: dtype of activations and of the cache; accumulation is float32 either way.
      rngs: source of the initial weights.
      weights: what else the weights of layers must have in common to lie in one stack, by the
        layer's number, such as their formats.

    Example:
      >>> from jentropy.models.config import DecoderConfig, RopeConfig
      >>> config = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=3,
      ...     num_heads=2, num_kv_heads=1, head_dim=8, rms_norm_eps=1e-6,
      ...     rope=RopeConfig(theta=1e4), tie_word_embeddings=True)
      >>> model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))  # costs no memory
      >>> graph, state = nnx.split(model)
      >>> ids = jnp.zeros((1, 4), jnp.int32)
      >>> jax.eval_shape(lambda state, ids: nnx.merge(graph, state)(ids), state, ids).shape
      (1, 4, 32)
      >>> model.layers[0].mlp.up_proj.weight.shape
      (3, 32, 16)
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        compute_dtype: DTypeLike = jnp.bfloat16,
        rngs: nnx.Rngs,
        weights: Mapping[int, Hashable] | None = None,
    ):
        self.config = config
        self.compute_dtype = jnp.dtype(compute_dtype)
        layers, others = config.layers(), weights or {}
        self.members = members_of((layer.kind, others.get(n)) for n, layer in enumerate(layers))
        self.kinds = tuple(tuple(layers[n] for n in members) for members in self.members)
        self.embed_tokens = Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = nnx.List([_stack(config, kind, rngs) for kind in self.kinds])
        self.norm = RMSNorm.of(config, config.hidden_size)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.hidden_size, config.vocab_size, rngs=rngs)
        )

    @modes.standard
    def new_cache(self, batch: int, capacity: int) -> tuple[Cache, ...]:
        """An empty cache for `capacity` positions: one of each kind of layers."""
        return tuple(
            stack.self_attn.new_cache(len(kind), batch, capacity, self.compute_dtype)
            for stack, kind in zip(self.layers, self.kinds, strict=True)
        )

    def grown(self, cache: tuple[Cache, ...], capacity: int) -> tuple[Cache, ...]:
        """A cache with room for `capacity` positions, if it has less."""
        windows = [max(layer.window or 0 for layer in kind) or None for kind in self.kinds]
        return tuple(
            one.grown(capacity, window) for one, window in zip(cache, windows, strict=True)
        )

    @modes.standard
    def hidden(
        self,
        input_ids: Int[Array | np.ndarray, "batch time"],
        cache: tuple[Cache, ...],
        start: Int[Array, "*starts"] | int,
        length: Int[Array, "*starts"] | int | None = None,
        count: Int[Array, "*starts"] | None = None,
    ) -> tuple[Float[Array, "batch time width"], tuple[Cache, ...]]:
        """Final hidden states of tokens at positions start, start + 1, ..., and the cache.

        Args:
          start: of all sequences, or int32[batch], of each.
          length: of the sequences, which some ropes depend on; None: up to these tokens.
          count: of the tokens those that are no padding, from the first on; None: all.
        """
        start = jnp.asarray(start, jnp.int32)
        length = start + input_ids.shape[1] if length is None else jnp.asarray(length, jnp.int32)
        tables = [turning(self.config, kind, length) for kind in self.kinds]

        def step(kind: int, carry: tuple, at: jax.Array) -> tuple:
            x, cache = carry
            turn = Turn(at, start, *(table[at] for table in tables[kind]))._replace(valid=count)
            # A layer is the same bits within a loop and without: XLA fuses nothing across its ends.
            x, turn = jax.lax.optimization_barrier((x, turn))
            x, new = take(self.layers[kind], at)(x, cache[kind], turn)
            return jax.lax.optimization_barrier(x), (*cache[:kind], new, *cache[kind + 1 :])

        x, cache = run(self.members, step, (self.embedded(input_ids), cache))
        return self.norm(x), cache

    def embedded(
        self, input_ids: Int[Array | np.ndarray, "batch time"]
    ) -> Float[Array, "batch time width"]:
        """What the first layer is given."""
        return scaled(self.embed_tokens(input_ids, self.compute_dtype), self.embedding_factor)

    @property
    def embedding_factor(self) -> float:
        """What the rows of the embedding are multiplied by."""
        factor, rounded = self.config.embedding_multiplier, self.config.embedding_multiplier_rounded
        return float(np.asarray(factor, self.compute_dtype)) if rounded else factor

    @modes.standard
    def logits(self, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        """float32 logits of hidden states."""
        project = self.embed_tokens.attend if self.lm_head is None else self.lm_head
        logits = project(hidden, out_dtype=jnp.float32)
        logits = logits if self.config.logits_scaling == 1 else logits / self.config.logits_scaling
        return soft_capped(logits, self.config.logits_soft_cap)

    @modes.standard
    def __call__(
        self, input_ids: Int[Array | np.ndarray, "batch time"]
    ) -> Float[Array, "batch time vocabulary"]:
        ids = jnp.asarray(input_ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            found = f"{ids.dtype}{list(ids.shape)}"
            raise InputError("input_ids", expected="int[batch, time]", found=found)
        return _logits(*nnx.split(self), ids)


def _stack(config: DecoderConfig, layers: Sequence[Layer], rngs: nnx.Rngs) -> Block:
    """Layers of one kind as one module, whose weights have the layers as their first axis."""
    windows = [layer.window for layer in layers if layer.window is not None]
    widest = replace(layers[0], window=max(windows, default=None))
    make = nnx.vmap(lambda rngs: Block(config, widest, rngs=rngs))
    return nnx.split_rngs(splits=len(layers))(make)(rngs)


def turning(
    config: DecoderConfig, layers: Sequence[Layer], length: Int[Array, "*batch"]
) -> tuple[jax.Array, ...]:
    """Numbers in which layers of one kind differ, as `Turn` has them, a row each."""
    ropes = list(dict.fromkeys(layer.rope for layer in layers))
    frequencies = jnp.stack([frequencies_at(rope, config.head_dim, length) for rope in ropes])
    which = np.array([ropes.index(layer.rope) for layer in layers])
    amplitudes = [layer.rope.amplitude if layer.rope else 1.0 for layer in layers]
    windows = [layer.window or 0 for layer in layers]
    return (
        frequencies[which],
        jnp.asarray(amplitudes, jnp.float32),
        jnp.asarray(windows, jnp.int32),
    )


@partial(jax.jit, static_argnums=0)
def _logits(
    graph: nnx.GraphDef, state: nnx.State, ids: Int[Array, "batch time"]
) -> Float[Array, "batch time vocabulary"]:
    """Logits of whole sequences, compiled once for each shape."""

    def run(state: nnx.State, ids: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        hidden, _ = model.hidden(ids, model.new_cache(*ids.shape), 0)
        return model.logits(hidden)

    return modes.automatic(run, state, ids, out=lambda: modes.spec_of(ids))
