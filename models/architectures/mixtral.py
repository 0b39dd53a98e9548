"""Mixtral (`MixtralForCausalLM`): Mistral with experts, whose projections are w1, w3 and w2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.expert_config import ExpertsConfig
from jentropy.models.keys import require, with_defaults
from jentropy.models.names import EXPERT_NAMES, Rule
from jentropy.models.rope_keys import rope_config

DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}
_BLOCK = r"(?:model\.)?(layers\.\d+)\.block_sparse_moe\."
_PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
NAMES = (
    Rule(name=_BLOCK + r"gate\.weight", paths=(r"\1.mlp.gate.weight",)),
    *(
        Rule(name=rf"{_BLOCK}(experts\.\d+)\.{name}\.weight", paths=(rf"\1.mlp.\2.{ours}.weight",))
        for name, ours in _PROJECTIONS.items()
    ),
    *EXPERT_NAMES,
)


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    return decoder_config(
        told,
        rope=rope_config(told, theta=1e6),
        windows=sliding_windows(told, used=True),
        experts=ExpertsConfig(
            count=require(told, "num_local_experts", int, 8),
            per_token=require(told, "num_experts_per_tok", int, 2),
            intermediate_size=require(told, "intermediate_size"),
            normalized=True,
        ),
    )


MIXTRAL = Architecture(config=config, other_names=("mixtral", "MixtralModel"), names=NAMES)
