"""GLM-4.5 and 4.6 (`Glm4MoeForCausalLM`): dense layers first, then experts chosen as DeepSeek does.

Half of a head's channels turn. Layers after the last (`num_nextn_predict_layers`), which predict
further tokens, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config
from jentropy.models.expert_keys import experts_in_groups, routed_from
from jentropy.models.keys import count, flag, require
from jentropy.models.names import EXPERT_NAMES
from jentropy.models.rope_keys import rope_config


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    return decoder_config(
        hf_config,
        rms_norm_eps=require(hf_config, "rms_norm_eps", float, 1e-5),
        rope=rope_config(hf_config, partly=True, rotated=0.5),
        output_bias=False,
        qk_norm=flag(hf_config, "use_qk_norm"),
        experts=experts_in_groups(hf_config, inner=1408, experts=128, groups=1, kept=1, scale=1.0),
        routed=routed_from(hf_config, 1),
        extra_layers=count(hf_config, "num_nextn_predict_layers", 1),
    )


GLM4_MOE = Architecture(config=config, other_names=("glm4_moe", "Glm4MoeModel"), names=EXPERT_NAMES)
