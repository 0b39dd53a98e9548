"""gpt-oss (`GptOssForCausalLM`): sinks in attention, every other layer slides, experts with biases.

Experts are stored as [experts, in, out], rows of gate and up taking turns, in BF16 or MXFP4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.expert_config import ExpertsConfig
from jentropy.models.keys import flag, require, with_defaults
from jentropy.models.names import NAMES, Rule
from jentropy.models.rope import RopeConfig
from jentropy.models.rope_keys import rope_config

THETA = 150000.0
DEFAULTS = {
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "sliding_window": 128,
}
# What a config that says nothing of its rope, but for its base, stands for.
ROPE = RopeConfig(theta=THETA, kind="yarn", factor=32.0, original_context=4096, truncate=False)
_MLP = r"(?:model\.)?(layers\.\d+\.mlp)\."
_BOTH = tuple(rf"\1.experts.{name}_proj." for name in ("gate", "up"))
RULES = (
    Rule(name=_MLP + r"router\.(weight|bias)", paths=(r"\1.gate.\2",)),
    Rule(
        name=_MLP + r"experts\.gate_up_proj",
        paths=tuple(path + "weight" for path in _BOTH),
        transposed=True,
        interleaved=True,
    ),
    Rule(
        name=_MLP + r"experts\.gate_up_proj_bias",
        paths=tuple(path + "bias" for path in _BOTH),
        interleaved=True,
    ),
    Rule(
        name=_MLP + r"experts\.down_proj", paths=(r"\1.experts.down_proj.weight",), transposed=True
    ),
    Rule(name=_MLP + r"experts\.down_proj_bias", paths=(r"\1.experts.down_proj.bias",)),
    *NAMES,
)


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    says_rope = any(told.get(key) for key in ("rope_parameters", "rope_scaling"))
    if says_rope:
        rope = rope_config(told, theta=THETA)
    else:
        rope = replace(ROPE, theta=require(told, "rope_theta", float, THETA))
    chosen = require(told, "num_experts_per_tok", int, 4)
    bias = flag(told, "attention_bias", True)
    return decoder_config(
        told,
        built_in={
            "experts_per_token": (chosen,),
            "initial_context_length": (rope.original_context,),
        },
        norm_in_float32=True,
        rope=rope,
        attention_bias=bias,
        output_bias=bias,
        attention_sinks=True,
        windows=sliding_windows(told, used=True, slides=lambda layer: layer % 2 == 0),
        experts=ExpertsConfig(
            count=require(told, "num_local_experts", int, 128),
            per_token=chosen,
            intermediate_size=require(told, "intermediate_size"),
            scoring="softmax of the chosen",
            scores_in_float32=False,
            bias=True,
            limit=require(told, "swiglu_limit", float, 7.0),
            alpha=require(told, "swiglu_alpha", float, 1.702),
        ),
    )


GPT_OSS = Architecture(config=config, other_names=("gpt_oss", "GptOssModel"), names=RULES)
