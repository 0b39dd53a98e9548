"""Latent attention: what it keeps of a token, and its two forms."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jentropy import modes
from jentropy.errors import InputError
from jentropy.models import Decoder, DecoderConfig, RopeConfig, attending, latent
from jentropy.models.caches import Turn
from jentropy.models.config import LatentConfig
from jentropy.models.latent import LatentAttention
from jentropy.pallas_kernels import to_resident

from .conftest import same_bits
from .test_model_configs import read

pytestmark = pytest.mark.usefixtures("compiled_quickly")

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
V3_SIZES = LatentConfig(
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
V3_LAYERS = dataclasses.replace(
    CONFIG, num_layers=61, num_heads=128, num_kv_heads=128, head_dim=64, latent=V3_SIZES
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


def test_keys_made_block_by_block_are_those_made_at_once(monkeypatch):
    for name, size in (("KEYS", 5), ("LONG", 16)):
        monkeypatch.setattr(attending, name, size)
    model = model_of()
    for start in (0, 6):  # what comes before is in the cache, too
        cache = run(model, IDS[:, :6], model.new_cache(2, 64), 0)[1]
        monkeypatch.setattr(latent, "MADE_AT_ONCE", 1 << 28)
        at_once, _ = nnx.jit(run.__wrapped__)(model, IDS, cache, start)
        monkeypatch.setattr(latent, "MADE_AT_ONCE", 0)
        by_blocks, _ = nnx.jit(run.__wrapped__)(model, IDS, cache, start)
        assert 0 < relative_error(by_blocks, at_once) < 1e-6


def test_memory_of_a_chunk_grows_by_its_latents_alone():
    """A layer of DeepSeek-V3 with room for 16,384 tokens: keys and values of all take 1.3 GB."""
    sizes, config = V3_SIZES, dataclasses.replace(V3_LAYERS, hidden_size=7168)
    layer = nnx.eval_shape(lambda: LatentAttention(config, config.layers()[0], rngs=nnx.Rngs(0)))
    graph, state = nnx.split(layer)
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), state)
    x = jax.ShapeDtypeStruct((1, 512, 7168), jnp.bfloat16)

    def temporaries(capacity: int) -> int:
        @modes.standard
        def attention(state, x, cache):
            at = jnp.int32(0)
            turn = Turn(at, at, jnp.ones(sizes.qk_rope_head_dim // 2), jnp.float32(1), at)
            return nnx.merge(graph, state)(x, cache, turn)

        cache = jax.eval_shape(lambda: layer.new_cache(1, 1, capacity, jnp.bfloat16))
        lowered = jax.jit(attention, donate_argnums=2).lower(state, x, cache)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = map(temporaries, (4096, 16384))
    assert many - few <= 4 * (16384 - 4096) * 576 * 2
    assert many < 1 << 30


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
    model = nnx.eval_shape(lambda: Decoder(V3_LAYERS, rngs=nnx.Rngs(0)))
    caches = jax.eval_shape(lambda: model.new_cache(1, 4096))
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(caches))
    assert numbers == 61 * 4096 * 576
    assert {leaf.dtype.name for leaf in jax.tree.leaves(caches)} == {"bfloat16"}


CODE = "modeling_deepseek.Deepseek"
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": f"{CODE}V3Model",
        "AutoModelForCausalLM": f"{CODE}V3ForCausalLM",
    },
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
KIMI_K2 = V3 | {
    "first_k_dense_replace": 1,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": V3["rope_scaling"] | {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
}
MOONLIGHT = V3 | {
    "first_k_dense_replace": 1,
    "max_position_embeddings": 8192,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "quantization_config": None,
    "rope_scaling": None,
    "topk_group": 1,
}
V2 = {k: v for k, v in V3.items() if k not in ("num_nextn_predict_layers", "auto_map")} | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": f"{CODE}V2ForCausalLM"},
    "first_k_dense_replace": 1,
    "model_type": "deepseek_v2",
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "rope_scaling": V3["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 16.0,
    "scoring_func": "softmax",
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}
V2_LITE = V2 | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "topk_method": "greedy"}
# Groups and those kept, experts of a token, dense layers, layers left out, attention's scale.
PUBLISHED = {
    "DeepSeek-V3": (V3, 8, 4, 8, 3, 1, 1.8738),
    "Kimi-K2": (KIMI_K2, 1, 1, 8, 1, 0, 1.8132),
    "Moonlight": (MOONLIGHT, 1, 1, 6, 1, 0, 1.0),
    "DeepSeek-V2": (V2, 8, 3, 6, 1, 0, 1.5896),
    "DeepSeek-V2-Lite": (V2_LITE, 1, 1, 6, 1, 0, 1.5896),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name):
    told, groups, kept, experts, dense, extra, scale = PUBLISHED[name]
    made = read(told)
    routing = made.experts
    assert (routing.groups, routing.kept_groups, routing.per_token) == (groups, kept, experts)
    assert (made.routed.index(True), made.extra_layers) == (dense, extra)
    assert made.rope.attention_scale == pytest.approx(scale, abs=1e-4)
    assert made.rope.amplitude == 1.0
    assert (made.latent.q_lora_rank is None) == (told["q_lora_rank"] is None)


@pytest.mark.parametrize(
    ("told", "changes", "message"),
    [
        (V3, {"scoring_func": "softmax"}, "scoring_func"),
        (V3, {"topk_method": "greedy"}, "topk_method"),
        (V3, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (V3, {"num_key_value_heads": 8}, "num_key_value_heads"),
        (V3, {"n_group": 7}, "7 groups"),
        (V2, {"topk_method": "noaux_tc"}, "topk_method"),
        (V2, {"norm_topk_prob": True}, "norm_topk_prob"),
    ],
)
def test_configs_of_another_model_are_refused(told, changes, message):
    with pytest.raises(InputError, match=message):
        read(told | changes)


def test_latents_have_no_window():
    with pytest.raises(InputError, match="none with latents"):
        dataclasses.replace(CONFIG, windows=(4, None))
