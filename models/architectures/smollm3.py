"""SmolLM3 (`SmolLM3ForCausalLM`): Llama with some layers whose tokens have no positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.errors import InputError
from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.keys import layer_count, require, with_defaults
from jentropy.models.rope_keys import rope_config

DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    rope, turning = rope_config(told, theta=2000000.0), _turning(told)
    return decoder_config(
        told,
        rope=rope,
        ropes=tuple(rope if turns else None for turns in turning),
        windows=sliding_windows(told, used=False, slides=lambda layer: not turning[layer]),
    )


def _turning(told: Mapping[str, Any]) -> tuple[bool, ...]:
    """Of every layer whether it has a rope."""
    layers = layer_count(told)
    interval = require(told, "no_rope_layer_interval", int, 4)
    listed = told.get("no_rope_layers")
    if listed is None:
        listed = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(listed, list) or len(listed) < layers or not set(listed) <= {0, 1}:
        expected = f"0 or 1 for each of {layers} layers"
        raise InputError("config.json: no_rope_layers", expected=expected, found=f"{listed!r:.60}")
    return tuple(map(bool, listed[:layers]))


SMOLLM3 = Architecture(config=config, other_names=("smollm3", "SmolLM3Model"))
