"""Qwen3, dense (`Qwen3ForCausalLM`): Llama with an RMS norm on each head of q and k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.keys import require, with_defaults

from . import qwen2


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, qwen2.DEFAULTS)
    return decoder_config(
        told,
        built_in={"use_qk_norm": (True,)},
        head_dim=require(told, "head_dim", int, 128),
        qk_norm=True,
        windows=sliding_windows(told, used=False, first=28),
    )


QWEN3 = Architecture(config=config, other_names=("qwen3", "Qwen3Model"))
