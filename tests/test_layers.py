"""Parts of models against their formulas: what no tiny model shows, because it does not use it."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jentropy import modes
from jentropy.models import Decoder, DecoderConfig
from jentropy.models.layers import ACTIVATIONS, Linear, RMSNorm, scaled
from jentropy.models.rope import RopeConfig, inverse_frequencies, rotate
from jentropy.models.rope_keys import rope_config

from .conftest import same_bits

X = np.linspace(-4, 4, 81, dtype=np.float32)


def test_a_linear_rope_divides_positions():
    plain = inverse_frequencies(RopeConfig(theta=1e4), 64)
    stretched = inverse_frequencies(RopeConfig(theta=1e4, kind="linear", factor=4.0), 64)
    np.testing.assert_allclose(stretched, plain / 4, rtol=1e-6)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 2, 64)), jnp.float32)
    with modes.standard_modes():
        near = rotate(x, jnp.arange(3), jnp.asarray(plain))
        far = rotate(x, 4 * jnp.arange(3), jnp.asarray(stretched))
    np.testing.assert_allclose(near, far, atol=1e-5)


# What transformers 5.24 computes: every eighth frequency, and the factor of cosines and sines.
YARN = {
    "gpt-oss": (
        {"rope_theta": 150000.0, "factor": 32.0, "truncate": False},
        [1.0, 0.05081327259540558, 0.0004564839182421565, 4.099978468730114e-06],
        1.3465735902799727,
    ),
    "deepseek": (
        {"rope_theta": 10000.0, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707},
        [1.0, 0.10000000149011612, 0.005500000435858965, 2.499999936844688e-05],
        1.0,
    ),
    "attention_factor": ({"factor": 40.0, "attention_factor": 1.25}, None, 1.25),
    "implied": ({"factor": None}, None, 0.1 * math.log(32) + 1),
}


@pytest.mark.parametrize("name", YARN)
def test_yarn(name):
    told, frequencies, amplitude = YARN[name]
    told = {"rope_type": "yarn", "original_max_position_embeddings": 4096, **told}
    rope = rope_config({"max_position_embeddings": 131072, "rope_parameters": told})
    assert rope.amplitude == pytest.approx(amplitude, rel=1e-12)
    if frequencies:
        np.testing.assert_allclose(inverse_frequencies(rope, 64)[::8], frequencies, rtol=2e-7)


def test_channels_side_by_side_are_rotated_as_those_apart():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 2, 8)), jnp.float32)
    frequencies = jnp.asarray(inverse_frequencies(RopeConfig(theta=1e4), 8))
    apart = jnp.concatenate((x[..., 0::2], x[..., 1::2]), axis=-1)
    with modes.standard_modes():
        turned = rotate(x, jnp.arange(3), frequencies, 0.5, interleaved=True)
        expected = 0.5 * rotate(apart, jnp.arange(3), frequencies)
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_norms_are_rounded_where_transformers_rounds_them():
    """Llama's before they are multiplied by the weight, Gemma's and OLMo's after."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 48)), jnp.bfloat16)
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(48), jnp.bfloat16)
    wide = np.asarray(x, np.float32)
    wide = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + 1e-6)
    rounded = np.asarray(wide.astype(jnp.bfloat16), np.float32)
    for offset, is_wide, expected in (
        (0.0, False, rounded * np.float32(weight)),
        (0.0, True, wide * np.float32(weight)),
        (1.0, True, wide * (1 + np.float32(weight))),
    ):
        norm = RMSNorm(48, eps=1e-6, offset=offset, wide=is_wide)
        norm.weight.set_value(weight)
        with modes.standard_modes():
            found = np.asarray(norm(x), np.float32)
        differs = found != expected.astype(jnp.bfloat16).astype(np.float32)
        assert differs.mean() < 0.01  # sums in another order
    assert (
        expected.astype(jnp.bfloat16) != (rounded * (1 + np.float32(weight))).astype(jnp.bfloat16)
    ).mean() > 0.1


def test_factors_are_rounded_as_in_transformers():
    """A number is not, a scale that is an array (Gemma) is; the product is."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(256), jnp.bfloat16)
    exact = (np.float32(x) * np.float32(3.3)).astype(jnp.bfloat16)
    assert same_bits(np.asarray(scaled(x, 3.3)), exact)
    assert not same_bits(np.asarray(x * jnp.bfloat16(3.3)), exact)
    config = DecoderConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope=RopeConfig(theta=1e4),
        tie_word_embeddings=True,
        embedding_multiplier=3.3,
    )
    for is_rounded, factor in ((False, 3.3), (True, 3.296875)):
        told = dataclasses.replace(config, embedding_multiplier_rounded=is_rounded)
        made = nnx.eval_shape(lambda told=told: Decoder(told, rngs=nnx.Rngs(0)))
        assert made.embedding_factor == factor


def test_a_bias_is_added():
    layer = Linear(4, 3, use_bias=True, rngs=nnx.Rngs(0))
    bias = jnp.array([1.0, -2.0, 0.5])
    layer.bias.set_value(bias)
    x = jnp.array([[1.0, 2.0, -1.0, 0.5]])
    expected = x @ layer.weight.get_value().T
    with modes.standard_modes():
        np.testing.assert_allclose(layer(x) - expected, bias[None], atol=1e-6)


GELU = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in X]
TANH = [0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) for x in X]
FORMULAS = {"silu": X / (1 + np.exp(-X)), "gelu": GELU, "gelu_pytorch_tanh": TANH}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_formulas(name):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X)), FORMULAS[name], atol=1e-6)


def test_both_gelu_can_be_told_apart():
    assert np.abs(np.array(GELU) - TANH).max() > 1e-4
