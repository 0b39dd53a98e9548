"""Gemma 2 (`Gemma2ForCausalLM`): norms around, 1 + w, soft caps; every other layer slides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.keys import require, with_defaults

DEFAULTS = {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    return decoder_config(
        told,
        # Older ones say these too, which nothing reads: its activation is `hidden_activation`.
        built_in={
            "hidden_act": ("gelu_pytorch_tanh", "gelu"),
            "sliding_window_size": (told["sliding_window"],),
        },
        windows=sliding_windows(told, used=True, slides=lambda layer: layer % 2 == 0),
        attention_soft_cap=cap(told, "attn_logit_softcapping"),
        **fields(told),
    )


def fields(told: Mapping[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    return {
        "norms": "both",
        "norm_offset": 1.0,
        "norm_in_float32": True,
        "embedding_multiplier": require(told, "hidden_size") ** 0.5,
        "embedding_multiplier_rounded": True,
        "attention_scale": require(told, "query_pre_attn_scalar") ** -0.5,
        "activation": str(told["hidden_activation"]),
        "logits_soft_cap": cap(told, "final_logit_softcapping"),
    }


def cap(told: Mapping[str, Any], key: str) -> float | None:
    """A soft cap, of which null says that there is none."""
    return None if told.get(key) is None else require(told, key, float)


GEMMA2 = Architecture(config=config, other_names=("gemma2", "Gemma2Model"))
