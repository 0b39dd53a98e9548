"""Granite (`GraniteForCausalLM`): Llama with factors of embedding, scores, residuals and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, no_windows
from jentropy.models.keys import require


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    return decoder_config(
        hf_config,
        embedding_multiplier=require(hf_config, "embedding_multiplier", float, 1.0),
        residual_multiplier=require(hf_config, "residual_multiplier", float, 1.0),
        attention_scale=require(hf_config, "attention_multiplier", float, 1.0),
        logits_scaling=require(hf_config, "logits_scaling", float, 1.0),
        windows=no_windows(hf_config, used=True),
    )


GRANITE = Architecture(config=config, other_names=("granite", "GraniteModel"))
