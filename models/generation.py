"""Text from a model: one jitted call from the prompt's tokens to the last new one."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from jentropy import modes
from jentropy.errors import InputError

from .decoder import Decoder


@modes.standard
def generate(
    model: Decoder,
    input_ids: Int[Array | np.ndarray, "batch time"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Int[Array, "batch total"]:
    """Continues prompts of equal length.

    A sequence that reaches one of the config's end tokens is filled up with its pad token.

    Args:
      model: the model.
      input_ids: int32[batch, time]: prompts, one token each at least.
      max_new_tokens: tokens to add.
      temperature: 0 takes the likeliest token, greater samples from softmax(logits / temperature).
      seed: of the sampling.

    Returns:
      int32[batch, time + max_new_tokens], prompts included.

    Raises:
      InputError: an empty prompt, token ids outside the vocabulary, or more positions than the
        model has.

    Example:
      >>> from jentropy.models import Decoder, DecoderConfig, RopeConfig
      >>> config = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=1,
      ...     num_heads=2, num_kv_heads=1, head_dim=8, rms_norm_eps=1e-6,
      ...     rope=RopeConfig(theta=1e4), tie_word_embeddings=True)
      >>> model = nnx.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)))()
      >>> generate(model, jnp.array([[3, 1]]), max_new_tokens=4).shape
      (1, 6)
    """
    ids = jnp.asarray(input_ids, jnp.int32)
    config = model.config
    if ids.ndim != 2 or ids.size == 0:
        raise InputError("input_ids", expected="int[batch, time], not empty", found=list(ids.shape))
    positions, last = ids.shape[1] + max_new_tokens, config.max_position_embeddings
    inside = bool(((ids >= 0) & (ids < config.vocab_size)).all())
    for what, holds, expected, value in (
        ("max_new_tokens", max_new_tokens >= 0, "0 or more", max_new_tokens),
        ("temperature", 0 <= temperature < math.inf, "0 or more", temperature),
        ("seed", 0 <= seed < 1 << 32, "0 to 4294967295", seed),
        ("input_ids", inside, f"0 to {config.vocab_size - 1}", f"up to {int(ids.max())}"),
        ("prompt and new tokens", positions <= last, f"at most {last} positions", positions),
    ):
        if not holds:
            raise InputError(what, expected=expected, found=value)
    if max_new_tokens == 0:
        return ids
    graph, state = nnx.split(model)
    return _generate(
        graph,
        state,
        ids,
        jax.random.key(seed),
        jnp.float32(temperature),
        new=max_new_tokens,
        sample=temperature > 0,
    )


@partial(jax.jit, static_argnames=("graph", "new", "sample"))
def _generate(
    graph: nnx.GraphDef,
    state: nnx.State,
    ids: Int[Array, "batch time"],
    key: jax.Array,
    temperature: jax.Array,
    *,
    new: int,
    sample: bool,
) -> Int[Array, "batch total"]:
    run = partial(_continued, graph, new=new, sample=sample)
    return modes.automatic(run, state, ids, key, temperature, out=lambda: modes.spec_of(ids))


def _continued(
    graph: nnx.GraphDef,
    state: nnx.State,
    ids: Int[Array, "batch time"],
    key: jax.Array,
    temperature: jax.Array,
    *,
    new: int,
    sample: bool,
) -> Int[Array, "batch total"]:
    model = nnx.merge(graph, state)
    config = model.config
    batch, time = ids.shape
    ends = jnp.asarray(config.eos_token_ids, jnp.int32)

    def choose(logits, step):
        if not sample:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        chosen = jax.random.categorical(jax.random.fold_in(key, step), logits / temperature)
        return chosen.astype(jnp.int32)

    def add(out, done, logits, step):
        token = jnp.where(done, config.pad_token_id, choose(logits, step))
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], time + step, axis=1)
        return out, done | jnp.isin(token, ends)

    def body(carry):
        out, done, cache, step = carry
        token = jax.lax.dynamic_slice_in_dim(out, time + step - 1, 1, axis=1)
        hidden, cache = model.hidden(token, cache, time + step - 1)
        out, done = add(out, done, model.logits(hidden[:, -1]), step)
        return out, done, cache, step + 1

    hidden, cache = model.hidden(ids, model.new_cache(batch, time + new), 0)
    out = jnp.pad(ids, ((0, 0), (0, new)), constant_values=config.pad_token_id)
    out, done = add(out, jnp.zeros(batch, bool), model.logits(hidden[:, -1]), 0)
    out, *_ = jax.lax.while_loop(
        lambda carry: (carry[3] < new) & ~carry[1].all(), body, (out, done, cache, jnp.int32(1))
    )
    return out
