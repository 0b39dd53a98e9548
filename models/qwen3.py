"""Qwen3, dense (`Qwen3ForCausalLM`): Llama with an RMS norm on each head of q and k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.errors import UnsupportedError

from .config import DecoderConfig, decoder_config


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    if hf_config.get("use_sliding_window"):
        raise UnsupportedError("use_sliding_window", expected="false", found="true")
    return decoder_config(hf_config, qk_norm=True)
