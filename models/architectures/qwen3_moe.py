"""Qwen3 with experts (`Qwen3MoeForCausalLM`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.errors import InputError
from jentropy.models.config import Architecture, DecoderConfig, decoder_config, no_windows
from jentropy.models.expert_config import ExpertsConfig
from jentropy.models.keys import flag, require
from jentropy.models.names import EXPERT_NAMES


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    # transformers 5 writes the second.
    told = [key for key in ("num_experts", "num_local_experts") if hf_config.get(key) is not None]
    experts = require(hf_config, (*told, "num_experts")[0], int, 128)
    return decoder_config(
        hf_config,
        built_in={"use_qk_norm": (True,), **dict.fromkeys(told, (experts,))},
        qk_norm=True,
        windows=no_windows(hf_config, used=False),
        experts=ExpertsConfig(
            count=experts,
            per_token=require(hf_config, "num_experts_per_tok", int, 8),
            intermediate_size=require(hf_config, "moe_intermediate_size", int, 768),
            normalized=flag(hf_config, "norm_topk_prob"),
            scores_in_float32=False,
        ),
        routed=_routed(hf_config),
    )


def _routed(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Of every layer whether it has experts."""
    step = require(config, "decoder_sparse_step", int, 1)
    dense = config.get("mlp_only_layers") or []
    if not (isinstance(dense, list) and all(type(n) is int for n in dense)):
        raise InputError(
            "config.json: mlp_only_layers", expected="numbers of layers", found=f"{dense!r:.60}"
        )
    layers = range(require(config, "num_hidden_layers"))
    return tuple(n not in dense and (n + 1) % step == 0 for n in layers)


QWEN3_MOE = Architecture(
    config=config, other_names=("qwen3_moe", "Qwen3MoeModel"), names=EXPERT_NAMES
)
