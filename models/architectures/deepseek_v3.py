"""DeepSeek-V3 and R1, Kimi-K2 and Moonlight (`DeepseekV3ForCausalLM`).

As DeepSeek-V2, but experts are scored by sigmoids, and chosen in groups with a bias of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig
from jentropy.models.expert_keys import experts_in_groups
from jentropy.models.keys import count, flag, require
from jentropy.models.names import EXPERT_NAMES

from .deepseek_v2 import deepseek_config, latent_config


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    return deepseek_config(
        hf_config,
        latent_config(hf_config, interleaved=flag(hf_config, "rope_interleave", True)),
        experts_in_groups(hf_config, inner=2048, experts=256, groups=8, kept=4, scale=2.5),
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
