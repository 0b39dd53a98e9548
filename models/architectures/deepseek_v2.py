"""DeepSeek-V2 and V2-Lite (`DeepseekV2ForCausalLM`): latent attention, experts by softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jentropy.errors import UnsupportedError
from jentropy.models.config import Architecture, DecoderConfig, LatentConfig, decoder_config
from jentropy.models.expert_config import ExpertsConfig
from jentropy.models.expert_keys import routed_from
from jentropy.models.keys import count, require, with_defaults
from jentropy.models.names import EXPERT_NAMES

METHODS = ("greedy", "group_limited_greedy")
LATENT = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def latent_config(config: Mapping[str, Any], *, interleaved: bool = True) -> LatentConfig:
    """Reads the sizes of latent attention.

    Args:
      interleaved: whether rotated channels lie side by side.
    """
    told = with_defaults(config, LATENT)
    sizes: dict[str, Any] = {
        key: require(told, key) for key in LATENT if key != "q_lora_rank" or told[key] is not None
    }
    return LatentConfig(**{"q_lora_rank": None, **sizes}, rope_interleave=interleaved)


def deepseek_config(
    config: Mapping[str, Any],
    latent: LatentConfig,
    experts: ExpertsConfig,
    *,
    dense: int,
    scoring: str,
    method: Sequence[str] = METHODS,
    **architecture: Any,
) -> DecoderConfig:
    """What both versions read alike.

    Args:
      dense: first layers without experts, if the config does not say it.
      scoring, method: what configs call the scores and the choice.
      **architecture: more fields.
    """
    heads = require(config, "num_attention_heads")
    return decoder_config(
        config,
        built_in={
            "moe_layer_freq": (1,),
            "num_key_value_heads": (heads,),
            "qk_head_dim": (latent.qk_nope_head_dim + latent.qk_rope_head_dim,),
            "scoring_func": (scoring,),
            "topk_method": method,
        },
        head_dim=latent.qk_rope_head_dim,
        num_kv_heads=heads,
        latent=latent,
        experts=experts,
        routed=routed_from(config, dense),
        **architecture,
    )


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    method = hf_config.get("topk_method") or METHODS[0]
    if hf_config.get("norm_topk_prob"):
        raise UnsupportedError("config.json: norm_topk_prob", expected=False, found=True)
    inner = require(hf_config, "moe_intermediate_size", int, 1407)
    told = require(hf_config, "n_group", int, 1), require(hf_config, "topk_group", int, 1)
    groups, kept = told if method == METHODS[1] else (1, 1)
    experts = ExpertsConfig(
        count=require(hf_config, "n_routed_experts", int, 64),
        per_token=require(hf_config, "num_experts_per_tok"),
        intermediate_size=inner,
        groups=groups,
        kept_groups=kept,
        scale=require(hf_config, "routed_scaling_factor", float, 1.0),
        logits_in_float32=True,
        shared_size=inner * count(hf_config, "n_shared_experts", 2),
    )
    return deepseek_config(hf_config, latent_config(hf_config), experts, dense=0, scoring="softmax")


DEEPSEEK_V2 = Architecture(
    config=config,
    other_names=("deepseek_v2", "DeepseekV2Model"),
    names=EXPERT_NAMES,
    own_code=("DeepseekV2Model", "DeepseekV2ForCausalLM"),
)
