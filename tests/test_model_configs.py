"""Which configs a model is built from, and which are refused lest its logits be silently wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from flax import nnx

import jentropy
from jentropy import models
from jentropy.checkpoints import safetensors
from jentropy.errors import InputError, UnsupportedError
from jentropy.models import loading
from jentropy.models.architectures import llama, qwen3

# config.json of published models, their sizes apart.
LLAMA_3_1 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
}
UNSLOTH = {
    **LLAMA_3_1,
    "_attn_implementation_autoset": True,
    "_name_or_path": "unsloth/Llama-3.2-1B",
    "head_dim": None,
    "pad_token_id": 128004,
    "quantization_config": None,
    "unsloth_fixed": True,
    "unsloth_version": "2025.3.19",
}
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "is_llama_config": True,
    "model_type": "llama",
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 130000,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "max_position_embeddings": 8192,
}
FALCON3 = {"activation": "swiglu", "model_type": "llama", "rope_theta": 1000042}
VICUNA_16K = {
    "_name_or_path": "vicuna-7b-v1.5-16k",
    "max_length": 16384,
    "max_sequence_length": 16384,
    "model_type": "llama",
    "pretraining_tp": 4,
    "rope_scaling": {"factor": 4.0, "type": "linear"},
    "temperature": 0.9,
    "top_p": 0.6,
}
LINEAR_KEPT = {"rope_scaling": {"factor": 2.0, "rope_type": "linear", "type": "linear"}}
BITSANDBYTES_MERGED = {
    **LLAMA_3_1,
    "quantization_config": {
        "_load_in_4bit": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "quant_method": "bitsandbytes",
    },
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 151645,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
QWEN3_NEW = {
    **QWEN3,
    "dtype": "bfloat16",
    "layer_types": ["full_attention", "full_attention"],
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "sliding_window": 4096,
}
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head"],
}
COMPRESSED_TENSORS = {
    "config_groups": {
        "group_0": {
            "format": "int-quantized",
            "input_activations": {"num_bits": 8, "dynamic": False, "strategy": "tensor"},
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "observer": "minmax", "observer_kwargs": {}},
        }
    },
    "format": "int-quantized",
    "global_compression_ratio": None,
    "ignore": ["lm_head"],
    "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False},
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "sparsity_config": {},
    "transform_config": {"config_groups": {}},
    "version": "0.11.0",
}
GPTQ = {
    "bits": 4,
    "checkpoint_format": "gptq",
    "desc_act": False,
    "group_size": 128,
    "lm_head": False,
    "meta": {"quantizer": ["gptqmodel:5.0.0"], "act_group_aware": True, "gptaq": None},
    "pack_dtype": "int32",
    "quant_method": "gptq",
    "rotation": None,
    "sym": True,
}
LLAMA_1 = {"model_type": "llama", "max_sequence_length": 2048, "pad_token_id": -1}
FOUND = {
    "llama 1": LLAMA_1,
    "what every decoder does": {"use_causal_mask": True, "rotary_pct": 1.0, "gated_mlp": True},
    "llama 3.1": LLAMA_3_1,
    "unsloth": UNSLOTH,
    "smollm2": SMOLLM2,
    "falcon3": FALCON3,
    "vicuna 16k": VICUNA_16K,
    "both rope names": LINEAR_KEPT,
    "merged after bitsandbytes": BITSANDBYTES_MERGED,
    "qwen3": QWEN3,
    "qwen3 of transformers 5": QWEN3_NEW,
    "a window as long as the context": {"sliding_window": 4096, "max_position_embeddings": 4096},
    "neutral": {"logits_soft_cap": 0.0, "residual_multiplier": 1.0, "mup": False, "experts": []},
    "tokenizer code": {"auto_map": {"AutoTokenizer": "x.Y"}},
    "fp8": {**QWEN3, "quantization_config": FP8},
    "compressed-tensors": {"quantization_config": COMPRESSED_TENSORS},
    "gptq": {**QWEN3, "quantization_config": GPTQ},
}
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6,
}


class Held(jentropy.Checkpoint):
    """A checkpoint of configs alone."""

    def __init__(self, config, **sidecars):
        super().__init__(Path("model"), [], config)
        self.texts = {"config.json": json.dumps(config)}
        self.texts.update({f"{name}.json": json.dumps(text) for name, text in sidecars.items()})

    def read_text(self, file):
        return self.texts.get(file)


def read(config, **sidecars):
    held = Held(config, **sidecars)
    return loading.read_config(held)[1]


@pytest.mark.parametrize("name", FOUND)
def test_configs_as_they_are_found_are_read(name):
    config = {"model_type": "llama", **SIZES, **FOUND[name]}
    made = read(config)
    assert made.qk_norm == (config["model_type"] == "qwen3")


def test_what_a_missing_key_stands_for():
    sizes = {key: value for key, value in SIZES.items() if key != "rms_norm_eps"}
    assert llama.config(sizes).head_dim == 16
    assert qwen3.config(sizes).head_dim == 128
    assert llama.config(sizes).rms_norm_eps == 1e-6
    assert llama.config(sizes).rope.theta == 10000.0


# What transformers takes for these keys, where an architecture has a number of its own.
UNSAID = {
    "gemma2": {"num_key_value_heads": 4, "max_position_embeddings": 8192},
    "gpt_oss": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "head_dim": 64},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072},
    "mixtral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
    "qwen2": {"max_position_embeddings": 32768},
    "qwen3": {"max_position_embeddings": 32768, "head_dim": 128},
    "qwen3_moe": {"num_key_value_heads": 4, "max_position_embeddings": 32768},
    "smollm3": {"num_key_value_heads": 4, "max_position_embeddings": 32768},
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_a_key_of_one_architecture_stands_for(name):
    sizes = {"model_type": name, **SIZES, "num_attention_heads": 16, "hidden_size": 256}
    silent = {key: value for key, value in sizes.items() if key not in UNSAID[name]}
    assert read(silent) == read({**sizes, **UNSAID[name]})


QWEN2_5 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "max_position_embeddings": 32768,
    "max_window_layers": 1,
    "model_type": "qwen2",
    "rope_theta": 1000000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
}


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, (None, None)),
        ({"use_sliding_window": True}, (None, 4096)),
        ({"use_sliding_window": True, "max_window_layers": None}, (None, None)),
        ({"use_sliding_window": True, "max_window_layers": 0}, (4096, 4096)),
        ({"use_sliding_window": True, "sliding_window": 32768}, (None, None)),
        (
            {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
            (4096, None),
        ),
    ],
)
def test_windows_of_qwen2_begin_at_a_layer(changes, windows):
    made = read({**SIZES, **QWEN2_5, **changes})
    assert made.windows == windows
    assert [layer.window for layer in made.layers()] == list(windows)
    assert (made.attention_bias, made.output_bias) == (True, False)
    qwen3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    assert read({**SIZES, **QWEN2_5, **changes, **qwen3}).windows == windows


def test_all_layers_of_qwen3_with_experts_slide_if_any_does():
    changes = {"architectures": None, "model_type": "qwen3_moe", "use_sliding_window": True}
    assert read({**SIZES, **QWEN2_5, **changes}).windows == (4096, 4096)


def test_a_sliding_layer_without_a_window_is_refused():
    kinds = {"layer_types": ["sliding_attention", "full_attention"]}
    with pytest.raises(UnsupportedError, match="layer_types"):
        read({**SIZES, **QWEN2_5, **kinds})


REFUSED = {
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "sliding_window": 4096,
    "layer_types": ["full_attention", "sliding_attention"],
    "attention_chunk_size": 8192,
    "no_rope_layers": [1, 0],
    "logits_scaling": 8.0,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 1.0,
    "query_pre_attn_scalar": 1,
    "is_causal": False,
    "use_rope": False,
    "use_bidirectional_attention": True,
    "use_qk_norm": True,
    "rope_interleaved": True,
    "partial_rotary_factor": 0.5,
    "per_layer_config": {"0": {"rms_norm_eps": 1e-3}},
    "pruned_heads": {"0": [1]},
    "auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"},
    "num_experts": 8,
    "norm_type": "layernorm",
    "rope_scaling": {"rope_type": "proportional", "factor": 4.0},
    "mrope_section": [16, 24, 24],
    "a_key_of_next_year": "on",
    # False, 0 and 1 are not neutral under every name.
    "use_causal_mask": False,
    "use_rms_norm": False,
    "gated_mlp": False,
    "use_rotary_embeddings": False,
    "rotary_pct": 0.0,
    "softmax_scale": 1.0,
    "norm_offset": 1.0,
    "layernorm_1p": 1,
    "post_norm": 1,
}


def test_a_window_of_one_is_one():
    with pytest.raises(UnsupportedError, match="sliding_window"):
        read({"model_type": "llama", **SIZES, "sliding_window": 1})


@pytest.mark.parametrize("key", REFUSED)
def test_keys_that_may_change_the_forward_pass_are_refused_by_name(key):
    config = {"model_type": "llama", **SIZES, "max_position_embeddings": 8192, key: REFUSED[key]}
    with pytest.raises(UnsupportedError, match="rope type" if key == "rope_scaling" else key):
        read(config)


YARN = {"rope_type": "yarn", "factor": 2.0}
WRONG = {
    "layer_types": {"layer_types": 3},
    "layer_types of a list": {"layer_types": [[]]},
    "layer_types of one text": {"layer_types": "full_attention"},
    "hidden_size of 400 digits": {"hidden_size": 10**400},
    "hidden_size that overflows": {"hidden_size": 1 << 62},
    "original_max_position_embeddings of a text": {
        "rope_parameters": {**YARN, "original_max_position_embeddings": "x"}
    },
    "mscale that overflows": {"rope_parameters": {**YARN, "mscale": 1e300, "mscale_all_dim": 1.0}},
    "factor of 400 digits": {"rope_parameters": {"rope_type": "linear", "factor": 10**400}},
    "a long name": {"hidden_act": "x" * 9999},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_config_of_anything_is_one_short_error(name):
    with pytest.raises(InputError, match=name.split()[0].removesuffix("s")) as told:
        read({"model_type": "qwen2", **SIZES, **WRONG[name]})
    assert len(str(told.value)) < 600


def test_a_scale_of_gemma_is_positive():
    sizes = SIZES | {"head_dim": 8, "query_pre_attn_scalar": 0}
    with pytest.raises(InputError, match="query_pre_attn_scalar"):
        read({"model_type": "gemma2", **sizes})


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"rope_type": "default", "factor": 8.0}, "factor = 8.0"),
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 1.2}, "attention_factor = 1.2"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, "mrope_section"),
        ({"rope_type": "llama3", "type": "linear", "factor": 8.0}, "rope_type: expected 'llama3'"),
        ({"rope_type": "linear"}, "'factor'"),
        (
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
            "rope_theta: expected 500000.0",
        ),
        (["linear"], "expected an object"),
    ],
)
def test_keys_within_the_rope_are_held_to_the_same(told, message):
    config = {"model_type": "llama", **SIZES, "rope_theta": 10000.0, "rope_parameters": told}
    with pytest.raises(InputError, match=message):
        read(config)


TRANSFORMS = {"config_groups": {"R4": {"type": "hadamard", "apply": [{"location": "input"}]}}}
ONLINE = {
    "rotation": {**GPTQ, "rotation": "hadamard"},
    "meta.rotation": {**GPTQ, "meta": {"rotation": "random"}},
    "adapter": {**GPTQ, "adapter": {"name": "lora", "rank": 32}},
    "transform_config": {**COMPRESSED_TENSORS, "transform_config": TRANSFORMS},
    "rotation_config": {"quant_method": "auto-round", "bits": 4, "rotation_config": {"a": "b"}},
    "algo_config.0": {"quant_method": "quark", "algo_config": [{"name": "rotation", "r4": True}]},
    "krot": {**GPTQ, "krot": 8},
    "meta.eora": {**GPTQ, "meta": {"eora": {"rank": 32}}},
    "config_groups.g.weights.hadamard": {
        **COMPRESSED_TENSORS,
        "config_groups": {"g": {"weights": {"num_bits": 8, "hadamard": True}}},
    },
    "quant_method": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
}


@pytest.mark.parametrize("name", ONLINE)
def test_a_quantisation_that_changes_more_than_weights_is_refused(name):
    config = {"model_type": "llama", **SIZES}
    with pytest.raises(UnsupportedError, match=rf"quantization_config.*{name}"):
        read({**config, "quantization_config": ONLINE[name]})
    with pytest.raises(UnsupportedError, match=rf"compression_config.*{name}"):
        read({**config, "compression_config": ONLINE[name]})


@pytest.mark.parametrize("value", [["fp8"], "fp8", True])
def test_a_quantisation_is_an_object(value):
    with pytest.raises(InputError, match="quantization_config: expected an object"):
        read({"model_type": "llama", **SIZES, "quantization_config": value})


def test_an_adapter_beside_a_model_is_refused():
    told = {"peft_type": "LORA", "base_model_name_or_path": "base"}
    with pytest.raises(UnsupportedError, match=r"adapter_config\.json.*merge it"):
        read({"model_type": "llama", **SIZES}, adapter_config=told)


def test_sidecars_are_held_to_the_same():
    config = {"model_type": "llama", **SIZES}
    turned = {**GPTQ, "rotation": "hadamard"}
    for declared in ({}, {"quantization_config": GPTQ}):
        with pytest.raises(UnsupportedError, match=r"quantize_config\.json: rotation"):
            read({**config, **declared}, quantize_config=turned)
    read({**config, "quantization_config": FP8}, quantize_config=turned)  # of other weights
    told = {"quantization": {"quant_algo": "NVFP4", "rotate": True}}
    with pytest.raises(UnsupportedError, match=r"rotate: expected none.* found True"):
        read(config, hf_quant_config=told)


@pytest.mark.parametrize(
    ("names", "qk_norm"),
    [
        ({"model_type": "llama"}, False),
        ({"model_type": "qwen3", "architectures": None}, True),
        ({"model_type": "qwen3", "architectures": []}, True),
        ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, True),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, False),
        ({"architectures": ["LlamaForCausalLM"]}, False),
    ],
)
def test_an_architecture_is_known_by_each_of_its_names(names, qk_norm):
    assert read({**SIZES, **names}).qk_norm == qk_norm


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"model_type": "bert"}, "'bert'"),
        ({"model_type": "mistral", "architectures": ["LlamaForCausalLM"]}, "'mistral'"),
        ({"model_type": "llama", "architectures": ["Qwen3ForCausalLM"]}, "'llama'"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]}, "Sequence"),
        ({}, "None"),
        ({"model_type": 3}, "3"),
    ],
)
def test_names_that_are_unknown_or_differ_are_refused(names, message):
    with pytest.raises(UnsupportedError, match=message):
        read({**SIZES, **names})


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
def test_a_flag_is_true_or_false(key):
    with pytest.raises(InputError, match=key):
        read({"model_type": "llama", **SIZES, key: "false"})


def rewrite(source: Path, target: Path, names=str, *, without=(), extra=(), config=None) -> Path:
    """A copy of a BF16 checkpoint of one file, its tensors under other names, and some in INT8."""
    target.mkdir()
    stored = safetensors.read(source / "model.safetensors").arrays
    held = [("BF16", names(a.name), a.read()) for a in stored if a.name not in without]
    held += [("I8", name, np.array(values, np.int8)) for name, values in dict(extra).items()]
    header, size = {}, 0
    for dtype, name, values in held:
        ends = [size, size + values.nbytes]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": ends}
        size = ends[1]
    text = json.dumps(header).encode()
    body = b"".join(np.ascontiguousarray(values).tobytes() for _, _, values in held)
    whole = len(text).to_bytes(8, "little") + text + body
    (target / "model.safetensors").write_bytes(whole)
    told = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**told, **(config or {})}))
    return target


def test_flat_names_are_those_of_a_model_without_a_head(fixtures, tmp_path):
    source = fixtures / "qwen3_bf16_tied"
    flat = rewrite(source, tmp_path / "flat", lambda name: name.removeprefix("model."))
    expected = jax.tree.leaves(nnx.state(models.load(source)))
    for path in (flat, flat / "model.safetensors"):
        chex.assert_trees_all_equal(jax.tree.leaves(nnx.state(models.load(path))), expected)
    untied = {"tie_word_embeddings": False}
    headless = rewrite(source, tmp_path / "headless", config=untied, without=["lm_head.weight"])
    with pytest.raises(InputError, match=r"missing lm_head\.weight .*output projection"):
        models.load(headless)


def test_factors_of_a_layers_input_are_refused(fixtures, tmp_path):
    def names(name):
        return name.replace("layers.0.input_layernorm.weight", "layers.0.mlp.act_pre_scale")

    source = rewrite(fixtures / "llama_bf16", tmp_path / "scaled", names)
    with pytest.raises(InputError, match=r"act_pre_scale scales the input"):
        models.load(source)


@pytest.mark.parametrize("value", [0, 1])
def test_zero_points_are_left_out_only_if_they_are_zero(value, fixtures, tmp_path):
    extra = {"model.layers.0.mlp.up_proj.weight_zero_point": [[value]]}
    source = rewrite(fixtures / "llama_bf16", tmp_path / "zeros", extra=extra)
    if value:
        with pytest.raises(InputError, match=r"unexpected model\..*weight_zero_point"):
            models.load(source)
    else:
        models.load(source)


def test_a_tokenizer_beside_a_single_file_is_its_own(tmp_path):
    folder = Path(shutil.copytree(models.BUNDLED, tmp_path / "model"))
    jentropy.compress_checkpoint(folder / "model.safetensors", tmp_path / "packed")
    expected = models.load_tokenizer(folder).encode("import os").ids
    for path in (folder / "model.safetensors", tmp_path / "packed"):
        assert models.load_tokenizer(path).encode("import os").ids == expected
    inspection = jentropy.inspect(tmp_path / "packed")
    assert inspection.other_files_bytes > 9_000
    assert inspection.bits_per_weight < 10.65  # the index lies there twice
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        models.load_tokenizer(folder / "model.safetensors")


# Published models with experts, but for their tokens and sizes that SIZES has.
WITH_EXPERTS = {
    "mixtral 8x7b": {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    },
    "qwen3 30b a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "output_router_logits": False,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "glm 4.5 air": {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "first_k_dense_replace": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "model_type": "glm4_moe",
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
        "use_qk_norm": False,
    },
    "gpt-oss 20b": {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "initial_context_length": 4096,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_experts_per_tok": 4,
        "num_local_experts": 32,
        "output_router_logits": False,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
            "quant_method": "mxfp4",
        },
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
    },
}


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_configs_of_models_with_experts(name):
    made = read({**SIZES, **WITH_EXPERTS[name]})
    experts = made.experts
    assert (experts.count, experts.per_token) == {
        "mixtral 8x7b": (8, 2),
        "qwen3 30b a3b": (128, 8),
        "glm 4.5 air": (128, 8),
        "gpt-oss 20b": (32, 4),
    }[name]
    assert [layer.routed for layer in made.layers()] == [name != "glm 4.5 air", True]
    assert (made.extra_layers, made.rope.rotated) == ((1, 0.5) if "glm" in name else (0, 1.0))
    assert [layer.window for layer in made.layers()] == [128 if "gpt" in name else None, None]


def test_which_layers_of_qwen3_have_experts():
    qwen3_moe = {**SIZES, **WITH_EXPERTS["qwen3 30b a3b"], "num_hidden_layers": 6}
    made = read({**qwen3_moe, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert made.routed == (False, True, False, False, False, True)
    with pytest.raises(UnsupportedError, match=r"num_local_experts: expected 128, found 64"):
        read({**qwen3_moe, "num_local_experts": 64})
    with pytest.raises(InputError, match="mlp_only_layers: expected numbers of layers"):
        read({**qwen3_moe, "mlp_only_layers": "3"})


def test_gpt_oss_says_little_where_all_is_as_published():
    told = dict(WITH_EXPERTS["gpt-oss 20b"])
    for key in ("rope_scaling", "rope_theta", "layer_types", "sliding_window", "swiglu_limit"):
        del told[key]
    assert read({**SIZES, **told}) == read({**SIZES, **WITH_EXPERTS["gpt-oss 20b"]})
    assert read({**SIZES, **told, "rope_theta": 500.0}).rope.theta == 500.0
