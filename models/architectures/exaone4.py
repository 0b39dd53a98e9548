"""EXAONE 4 (`Exaone4ForCausalLM`): norms after, q and k normed, no rope where others slide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.keys import require, with_defaults
from jentropy.models.rope_keys import rope_config

DEFAULTS = {"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4}


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    # Published ones say it in letters too ("LLLG"), beside `layer_types`.
    every = 1 if told.get("layer_types") else require(told, "sliding_window_pattern", int, 1)
    windows = sliding_windows(told, used=True, slides=lambda layer: (layer + 1) % every != 0)
    rope, mixed = rope_config(told), told.get("sliding_window") is not None
    ropes = tuple(rope if window or not mixed else None for window in windows)
    return decoder_config(
        told,
        built_in={"sliding_window_pattern": ("LLLG", told["sliding_window_pattern"])},
        norms="after",
        qk_norm=True,
        rope=rope,
        ropes=ropes,
        windows=windows,
    )


EXAONE4 = Architecture(config=config, other_names=("exaone4", "Exaone4Model"))
