"""Qwen2 and 2.5 (`Qwen2ForCausalLM`): Llama with biases on q, k and v, and windows if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.keys import with_defaults

DEFAULTS = {"max_position_embeddings": 32768}


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    return decoder_config(
        told,
        attention_bias=True,
        output_bias=False,
        windows=sliding_windows(told, used=False, first=28),
    )


QWEN2 = Architecture(config=config, other_names=("qwen2", "Qwen2Model"))
