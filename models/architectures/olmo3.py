"""OLMo 3 (`Olmo3ForCausalLM`): OLMo 2 with three layers that slide to one that sees everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.keys import with_defaults
from jentropy.models.rope_keys import ropes_by_kind

from . import olmo2

DEFAULTS = {**olmo2.DEFAULTS, "sliding_window": 4096}


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    windows = sliding_windows(told, used=True, slides=lambda layer: (layer + 1) % 4 != 0)
    full, sliding = ropes_by_kind(told, theta=500000.0)
    ropes = tuple(sliding if window else full for window in windows)
    return decoder_config(told, rope=full, ropes=ropes, windows=windows, **olmo2.FIELDS)


OLMO3 = Architecture(config=config, other_names=("olmo3", "Olmo3Model"))
