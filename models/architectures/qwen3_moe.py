"""Qwen3 with experts (`Qwen3MoeForCausalLM`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.errors import InputError
from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.expert_config import ExpertsConfig
from jentropy.models.keys import flag, layer_count, require, with_defaults
from jentropy.models.names import EXPERT_NAMES

from . import qwen2

DEFAULTS = {**qwen2.DEFAULTS, "num_key_value_heads": 4}


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    # transformers 5 writes the second.
    counts = [key for key in ("num_experts", "num_local_experts") if told.get(key) is not None]
    experts = require(told, (*counts, "num_experts")[0], int, 128)
    return decoder_config(
        told,
        built_in={"use_qk_norm": (True,), **dict.fromkeys(counts, (experts,))},
        qk_norm=True,
        # `max_window_layers` counts for nothing here, unlike in Qwen3 without experts.
        windows=sliding_windows(told, used=False, slides=lambda layer: True),
        experts=ExpertsConfig(
            count=experts,
            per_token=require(told, "num_experts_per_tok", int, 8),
            intermediate_size=require(told, "moe_intermediate_size", int, 768),
            normalized=flag(told, "norm_topk_prob"),
            scores_in_float32=False,
        ),
        routed=_routed(told),
    )


def _routed(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Of every layer whether it has experts."""
    step = require(config, "decoder_sparse_step", int, 1)
    dense = config.get("mlp_only_layers") or []
    if not (isinstance(dense, list) and all(type(n) is int for n in dense)):
        raise InputError(
            "config.json: mlp_only_layers", expected="numbers of layers", found=f"{dense!r:.60}"
        )
    layers = range(layer_count(config))
    return tuple(n not in dense and (n + 1) % step == 0 for n in layers)


QWEN3_MOE = Architecture(
    config=config, other_names=("qwen3_moe", "Qwen3MoeModel"), names=EXPERT_NAMES
)
