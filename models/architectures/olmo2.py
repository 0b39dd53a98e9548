"""OLMo 2 (`Olmo2ForCausalLM`): norms after attention and MLP, and of q and k over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, no_windows
from jentropy.models.keys import with_defaults

DEFAULTS = {"rms_norm_eps": 1e-5}
FIELDS: Mapping[str, Any] = {
    "norms": "after",
    "norm_in_float32": True,
    "qk_norm": True,
    "qk_norm_whole": True,
}


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    return decoder_config(told, windows=no_windows(told, used=True), **FIELDS)


OLMO2 = Architecture(config=config, other_names=("olmo2", "Olmo2Model"))
