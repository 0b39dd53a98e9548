"""GLM-4.5 and 4.6 (`Glm4MoeForCausalLM`): dense layers first, then experts chosen as DeepSeek does.

Half of a head's channels turn. Layers after the last (`num_nextn_predict_layers`), which predict
further tokens, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config
from jentropy.models.expert_config import ExpertsConfig
from jentropy.models.keys import count, flag, require
from jentropy.models.names import EXPERT_NAMES
from jentropy.models.rope_keys import rope_config


def routed_from(config: Mapping[str, Any], first: int) -> tuple[bool, ...]:
    """Of every layer whether it has experts: all from `first_k_dense_replace` on.

    Args:
      first: what that is where it is missing.
    """
    first = count(config, "first_k_dense_replace", first)
    return tuple(n >= first for n in range(require(config, "num_hidden_layers")))


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    inner = require(hf_config, "moe_intermediate_size", int, 1408)
    return decoder_config(
        hf_config,
        rms_norm_eps=require(hf_config, "rms_norm_eps", float, 1e-5),
        rope=rope_config(hf_config, partly=True, rotated=0.5),
        output_bias=False,
        qk_norm=flag(hf_config, "use_qk_norm"),
        experts=ExpertsConfig(
            count=require(hf_config, "n_routed_experts", int, 128),
            per_token=require(hf_config, "num_experts_per_tok", int, 8),
            intermediate_size=inner,
            scoring="sigmoid",
            correction=True,
            groups=require(hf_config, "n_group", int, 1),
            kept_groups=require(hf_config, "topk_group", int, 1),
            best_of_group=2,
            normalized=flag(hf_config, "norm_topk_prob", True),
            scale=require(hf_config, "routed_scaling_factor", float, 1.0),
            logits_in_float32=True,
            shared_size=inner * count(hf_config, "n_shared_experts", 1),
        ),
        routed=routed_from(hf_config, 1),
        extra_layers=count(hf_config, "num_nextn_predict_layers", 1),
    )


GLM4_MOE = Architecture(config=config, other_names=("glm4_moe", "Glm4MoeModel"), names=EXPERT_NAMES)
