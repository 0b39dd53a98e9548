"""Qwen3, dense (`Qwen3ForCausalLM`): Llama with an RMS norm on each head of q and k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.errors import UnsupportedError
from jentropy.models.config import DecoderConfig, decoder_config, refuse_windows
from jentropy.models.keys import flag, require

from .architecture import Architecture


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    refuse_windows(hf_config, used=False)
    if not flag(hf_config, "use_qk_norm", True):
        raise UnsupportedError("config.json: use_qk_norm", expected="true", found="false")
    head_dim = require(hf_config, "head_dim", int, 128)
    return decoder_config(hf_config, qk_norm=True, head_dim=head_dim)


QWEN3 = Architecture(config=config, other_names=("qwen3", "Qwen3Model"))
