"""Mistral (`MistralForCausalLM`): Llama whose layers all slide, if any does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.keys import with_defaults

DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    return decoder_config(told, windows=sliding_windows(told, used=True))


MISTRAL = Architecture(config=config, other_names=("mistral", "MistralModel"))
