"""Latent attention: what it keeps of a token, and its two forms."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jentropy.errors import InputError
from jentropy.models import Decoder, DecoderConfig, RopeConfig
from jentropy.models.config import LatentConfig
from jentropy.pallas_kernels import to_resident

from .conftest import same_bits

SIZES = LatentConfig(
    q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6
)
YARN = RopeConfig(theta=1e4, kind="yarn", factor=4.0, original_context=8, mscale_all_dim=1.0)
CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=4,
    rms_norm_eps=1e-6,
    rope=YARN,
    tie_word_embeddings=True,
    latent=SIZES,
)
IDS = np.random.default_rng(0).integers(0, 64, (2, 24)).astype(np.int32)


def model_of(**changes) -> Decoder:
    config = dataclasses.replace(CONFIG, **changes)
    model = Decoder(config, compute_dtype=jnp.float32, rngs=nnx.Rngs(0))
    return jax.tree.map(lambda x: 5 * x if x.ndim > 2 else x, model)  # so that heads differ


def relative_error(a, b) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


@nnx.jit
def run(model, ids, cache, start):
    """Logits of tokens one after the other, and the cache."""
    hidden, cache = model.hidden(ids, cache, start)
    return model.logits(hidden), cache


@pytest.mark.parametrize("rank", [24, None])
def test_absorbed_steps_are_the_expanded_pass(rank):
    assert SIZES.absorbs(1)
    assert not SIZES.absorbs(IDS.shape[1])
    model = model_of(latent=dataclasses.replace(SIZES, q_lora_rank=rank))
    whole, _ = run(model, IDS, model.new_cache(2, 24), 0)
    cache, steps = model.new_cache(2, 24), []
    for at in range(24):
        step, cache = run(model, IDS[:, at : at + 1], cache, at)
        steps.append(step)
    assert 0 < relative_error(np.concatenate(steps, axis=1), whole) < 1e-5
    moved, _ = run(model, np.roll(IDS, 1, axis=1), model.new_cache(2, 24), 0)
    assert relative_error(moved[:, 1:], whole[:, :-1]) > 1e-2  # positions count


def test_compressed_weights_give_the_same_bits_in_both_forms():
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model_of())
    compressed = nnx.clone(model)
    proj = compressed.layers[0].self_attn.kv_b_proj
    proj.weight.set_value(to_resident(proj.weight.get_value(), "reference"))
    for ids in (IDS, IDS[:, :1]):
        (found, _), (expected, _) = (
            run(each, ids, each.new_cache(2, 24), 0) for each in (compressed, model)
        )
        assert same_bits(found, expected)


def test_the_cache_holds_latents_and_rotary_keys_only():
    """Of DeepSeek-V3: 576 numbers a token and layer, where 128 heads have 40,960."""
    sizes = LatentConfig(
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )
    config = dataclasses.replace(
        CONFIG, num_layers=61, num_heads=128, num_kv_heads=128, head_dim=64, latent=sizes
    )
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    caches = jax.eval_shape(lambda: model.new_cache(1, 4096))
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(caches))
    assert numbers == 61 * 4096 * 576
    assert {leaf.dtype.name for leaf in jax.tree.leaves(caches)} == {"bfloat16"}


def test_latents_have_no_window():
    with pytest.raises(InputError, match="none with latents"):
        dataclasses.replace(CONFIG, windows=(4, None))
