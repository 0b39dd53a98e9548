"""Phi-3, 3.5 and 4 (`Phi3ForCausalLM`): Llama with q, k, v in one matrix, and gate and up.

A part of a head's channels may turn. Published ones bring along code of their own that computes the
same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.keys import with_defaults
from jentropy.models.names import NAMES, Rule
from jentropy.models.rope_keys import rope_config

DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
LONGROPE = {"su": "longrope", "yarn": "longrope"}  # as configs of earlier days call it


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    return decoder_config(
        told,
        built_in={"full_attn_mod": (1,), "interpolate_factor": (1,), "lm_head_bias": (False,)},
        rope=rope_config(told, partly=True, names=LONGROPE),
        windows=sliding_windows(told, used=True),
    )


PHI3 = Architecture(
    config=config,
    other_names=("phi3", "Phi3Model"),
    names=(
        Rule(
            name=r"(?:model\.)?(layers\.\d+\.self_attn)\.qkv_proj\.(\w+)",
            paths=(r"\1.q_proj.\2", r"\1.k_proj.\2", r"\1.v_proj.\2"),
        ),
        Rule(
            name=r"(?:model\.)?(layers\.\d+\.mlp)\.gate_up_proj\.(\w+)",
            paths=(r"\1.gate_proj.\2", r"\1.up_proj.\2"),
        ),
        *NAMES,
    ),
    own_code=("Phi3ForCausalLM", "Phi3Model"),
)
