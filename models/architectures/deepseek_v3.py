"""DeepSeek-V3 and R1, Kimi-K2 and Moonlight (`DeepseekV3ForCausalLM`).

As DeepSeek-V2, but experts are scored by sigmoids, and chosen in groups with a bias of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig
from jentropy.models.expert_config import ExpertsConfig
from jentropy.models.keys import count, flag, require
from jentropy.models.names import EXPERT_NAMES

from .deepseek_v2 import deepseek_config, latent_config


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    inner = require(hf_config, "moe_intermediate_size", int, 2048)
    experts = ExpertsConfig(
        count=require(hf_config, "n_routed_experts", int, 256),
        per_token=require(hf_config, "num_experts_per_tok", int, 8),
        intermediate_size=inner,
        scoring="sigmoid",
        correction=True,
        groups=require(hf_config, "n_group", int, 8),
        kept_groups=require(hf_config, "topk_group", int, 4),
        best_of_group=2,
        normalized=flag(hf_config, "norm_topk_prob", True),
        scale=require(hf_config, "routed_scaling_factor", float, 2.5),
        logits_in_float32=True,
        shared_size=inner * count(hf_config, "n_shared_experts", 1),
    )
    return deepseek_config(
        hf_config,
        latent_config(hf_config, interleaved=flag(hf_config, "rope_interleave", True)),
        experts,
        dense=3,
        scoring="sigmoid",
        method=("noaux_tc",),
        extra_layers=count(hf_config, "num_nextn_predict_layers", 1),
        max_position_embeddings=require(hf_config, "max_position_embeddings", int, 4096),
    )


DEEPSEEK_V3 = Architecture(
    config=config,
    other_names=("deepseek_v3", "DeepseekV3Model", "kimi_k2"),
    names=EXPERT_NAMES,
    own_code=("DeepseekV3Model", "DeepseekV3ForCausalLM"),
)
