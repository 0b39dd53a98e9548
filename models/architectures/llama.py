"""Llama 2 and 3 (`LlamaForCausalLM`), with Llama 3.1's rope scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, no_windows


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    return decoder_config(hf_config, windows=no_windows(hf_config, used=True))


LLAMA = Architecture(config=config, other_names=("llama", "LlamaModel"))
