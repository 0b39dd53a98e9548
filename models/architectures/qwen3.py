"""Qwen3, dense (`Qwen3ForCausalLM`): Llama with an RMS norm on each head of q and k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, no_windows
from jentropy.models.keys import require


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    return decoder_config(
        hf_config,
        built_in={"use_qk_norm": (True,)},
        head_dim=require(hf_config, "head_dim", int, 128),
        qk_norm=True,
        windows=no_windows(hf_config, used=False),
    )


QWEN3 = Architecture(config=config, other_names=("qwen3", "Qwen3Model"))
