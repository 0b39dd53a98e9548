"""Dense architectures as they are published: their configs, spellings of Gemma 3, long ropes."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jentropy import models
from jentropy.errors import InputError, UnsupportedError
from jentropy.models.generation import sample, step
from jentropy.models.state import prefill

from .conftest import same_bits
from .test_layer_stacks import rewritten
from .test_model_configs import read
from .test_truth import MODELS, logits, reference

# config.json of published models, but for lists of factors that are shortened with the heads.
TRAINED = {"attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
PHI_3_MINI_128K = {
    **TRAINED,
    "architectures": ["Phi3ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
PHI_4_MINI = {
    **PHI_3_MINI_128K,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
GEMMA_2_2B = {
    **TRAINED,
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "vocab_size": 256000,
}
GEMMA_3_1B = {
    **TRAINED,
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
OLMO_2_7B = {
    **TRAINED,
    "architectures": ["Olmo2ForCausalLM"],
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
OLMO_3_7B = {
    **OLMO_2_7B,
    "architectures": ["Olmo3ForCausalLM"],
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
    "max_position_embeddings": 65536,
    "model_type": "olmo3",
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "sliding_window": 4096,
}
SMOLLM3_3B = {
    **TRAINED,
    "architectures": ["SmolLM3ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
GRANITE_3_2B = {
    **TRAINED,
    "architectures": ["GraniteForCausalLM"],
    "attention_dropout": 0.1,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "granite",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
}

EXAONE_4_32B = {
    "architectures": ["Exaone4ForCausalLM"],
    "attention_dropout": 0.0,
    "eos_token_id": 361,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 27392,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
    "max_position_embeddings": 131072,
    "model_type": "exaone4",
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 1000000,
    "sliding_window": 4096,
    "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": False,
    "vocab_size": 102400,
}


def sliding(config) -> list[int]:
    return [n for n, layer in enumerate(config.layers()) if layer.window]


def test_mistral():
    assert set(read(MISTRAL_7B).windows) == {4096}
    assert sliding(read({**MISTRAL_7B, "sliding_window": None})) == []


def test_phi3():
    made = read(PHI_3_MINI_128K)
    assert made.rope.amplitude == pytest.approx(1.1902380714238083)
    assert (made.outgrown, sliding(made)) == (4096, [])
    made = read(PHI_4_MINI)
    assert (made.rope.rotated, made.tie_word_embeddings) == (0.75, True)
    old = {**PHI_3_MINI_128K["rope_scaling"], "type": "su"}
    assert read({**PHI_3_MINI_128K, "rope_scaling": old}).rope.kind == "longrope"
    short = {**PHI_3_MINI_128K["rope_scaling"], "long_factor": [1.0] * 47}
    with pytest.raises(InputError, match="96 channels, 47 and 48 factors"):
        read({**PHI_3_MINI_128K, "rope_scaling": short})
    with pytest.raises(UnsupportedError, match="auto_map"):
        read({**PHI_3_MINI_128K, "auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}})


def test_gemma2():
    made = read(GEMMA_2_2B)
    assert sliding(made) == list(range(0, 26, 2))
    assert (made.attention_soft_cap, made.logits_soft_cap) == (50.0, 30.0)
    assert (made.attention_scale, made.embedding_multiplier) == (1 / 16, 48.0)
    assert made.tie_word_embeddings
    uncapped = read({**GEMMA_2_2B, "attn_logit_softcapping": None})
    assert uncapped.attention_soft_cap is None
    with pytest.raises(UnsupportedError, match="use_bidirectional_attention"):
        read({**GEMMA_2_2B, "use_bidirectional_attention": True})


def test_gemma3():
    text, whole = read(GEMMA_3_1B), read(GEMMA_3_4B)
    for made in (text, whole):
        full = list(range(5, made.num_layers, 6))
        assert [n for n in range(made.num_layers) if n not in sliding(made)] == full
        assert {layer.rope.theta for layer in made.layers() if layer.window} == {1e4}
        assert {layer.rope.theta for layer in made.layers() if not layer.window} == {1e6}
        assert made.eos_token_ids == (1, 106)
    assert (text.ropes[5].kind, whole.ropes[5].factor, whole.ropes[0].kind) == (
        "default",
        8.0,
        "default",
    )
    assert (whole.vocab_size, whole.num_heads, whole.head_dim) == (262208, 8, 256)
    new = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    both = {**GEMMA_3_1B, "rope_parameters": new}
    with pytest.raises(UnsupportedError, match="rope_local_base_freq"):
        read(both)
    with pytest.raises(UnsupportedError, match=r"text_config of Gemma 3.*a_key"):
        read({**GEMMA_3_4B, "text_config": {**GEMMA_3_4B["text_config"], "a_key": "on"}})
    with pytest.raises(InputError, match="text_config"):
        read({**GEMMA_3_4B, "text_config": None})


def test_olmo():
    assert read(OLMO_2_7B).norms == "after"
    made = read(OLMO_3_7B)
    assert {layer.rope.kind for layer in made.layers() if layer.window} == {"default"}
    assert {layer.rope.kind for layer in made.layers() if not layer.window} == {"yarn"}
    assert made.ropes[3].amplitude == 1.2079441541679836
    bare = {key: value for key, value in OLMO_3_7B.items() if key != "layer_types"}
    assert read(bare).windows == made.windows


def test_smollm3():
    made = read(SMOLLM3_3B)
    assert [layer.rope is None for layer in made.layers()] == [False, False, False, True] * 9
    bare = {key: value for key, value in SMOLLM3_3B.items() if key != "no_rope_layers"}
    assert read(bare).ropes == made.ropes
    with pytest.raises(InputError, match="no_rope_layers: expected 0 or 1 for each of 36 layers"):
        read({**SMOLLM3_3B, "no_rope_layers": [1, 0]})


def test_exaone4():
    made = read(EXAONE_4_32B)
    assert [layer.rope is None for layer in made.layers()] == [False, False, False, True] * 16
    assert all((layer.rope is None) == (layer.window is None) for layer in made.layers())
    none = {"sliding_window": None, "layer_types": None, "sliding_window_pattern": None}
    assert {layer.rope for layer in read({**EXAONE_4_32B, **none}).layers()} == {made.rope}
    whole = {"layer_types": ["full_attention"] * 64}  # a window that no layer has says the same
    assert {layer.rope for layer in read({**EXAONE_4_32B, **whole}).layers()} == {None}


def test_granite():
    made = read(GRANITE_3_2B)
    assert (made.attention_scale, made.logits_scaling) == (0.015625, 8.0)
    assert (made.embedding_multiplier, made.residual_multiplier) == (12.0, 0.22)
    with pytest.raises(InputError, match="logits_scaling: expected not 0"):
        read({**GRANITE_3_2B, "logits_scaling": 0.0})


# Names of the same weights in checkpoints of transformers 4 and 5, and as others saved them.
SPELLINGS = {
    "model.language_model.": "lm_head.weight",
    "language_model.": "language_model.lm_head.weight",
    "model.language_model.model.": "lm_head.weight",
}
OLD_TEXT = {
    "rope_local_base_freq": 100.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "rope_theta": 3000.0,
    "sliding_window_pattern": 2,
}


def test_the_text_of_gemma3_by_other_names(tmp_path):
    source = MODELS / "gemma3_nested"
    ids = reference(source)["input_ids"]
    expected = logits(models.load(source, compute_dtype=jnp.float32), ids)
    told = json.loads((source / "config.json").read_text())
    new = ("layer_types", "rope_parameters", "tie_word_embeddings")
    text = {key: value for key, value in told["text_config"].items() if key not in new}
    for number, (prefix, head) in enumerate(SPELLINGS.items()):

        def change(arrays, prefix=prefix, head=head):
            inner = "language_model.model."
            named = {name.replace(inner, prefix): array for name, array in arrays.items()}
            return {**named, head: arrays[f"{inner}embed_tokens.weight"]}

        config = {"text_config": {**text, **OLD_TEXT}} if number else {}
        other = rewritten(source, tmp_path / str(number), change, config)
        assert same_bits(logits(models.load(other, compute_dtype=jnp.float32), ids), expected)


def test_every_sequence_of_a_batch_outgrows_its_rope_by_itself():
    model = models.load(MODELS / "phi3_longrope", compute_dtype=jnp.float32)
    tokens = reference(MODELS / "phi3_longrope")["greedy"][0]
    limit = model.config.outgrown
    assert limit == 16
    prompts = [tokens[:8], tokens[: limit + 1], tokens[:13], tokens[:limit]]
    out = np.asarray(models.generate(model, prompts, max_new_tokens=12))
    for row, prompt in zip(out, prompts, strict=True):
        end = len(prompt) + 12
        np.testing.assert_array_equal(row[:end], tokens[:end])
    # In turns: a prompt is read on, and one token after the other.
    state = prefill(model, [tokens[:10], tokens[:12]])
    state = prefill(model, [tokens[10:20], tokens[12:15]], state=state)
    for _ in range(4):
        state = step(model, state, sample(state))
    for row, end in zip(np.asarray(state.tokens), (24, 19), strict=True):
        np.testing.assert_array_equal(row[:end], tokens[:end])


def test_a_dynamic_rope_is_for_longer_sequences_than_the_model_was_made_for():
    config = json.loads((MODELS / "llama_dynamic" / "config.json").read_text())
    made = read(config)
    assert (made.rope.original_context, made.max_position_embeddings) == (16, 64)
