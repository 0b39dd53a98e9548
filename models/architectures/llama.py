"""Llama 2 and 3 (`LlamaForCausalLM`), with Llama 3.1's rope scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import DecoderConfig, decoder_config, refuse_windows

from .architecture import Architecture


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    refuse_windows(hf_config, used=True)
    return decoder_config(hf_config)


LLAMA = Architecture(config=config, other_names=("llama", "LlamaModel"))
