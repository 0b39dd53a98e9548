"""Gemma 3: Gemma 2 with norms of q and k, ropes by kind of layer and one in six that sees all.

`Gemma3ForCausalLM` is text alone. `Gemma3ForConditionalGeneration` has it as one part, under
`text_config` and `language_model.`, of which the decoder is made; the weights and keys of the part
that sees images are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.errors import InputError
from jentropy.models.config import Architecture, DecoderConfig, decoder_config, sliding_windows
from jentropy.models.keys import Keys, known, refuse_unread, require, with_defaults
from jentropy.models.names import Rule
from jentropy.models.rope_keys import ropes_by_kind

from . import gemma2

DEFAULTS = {
    **gemma2.DEFAULTS,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "vocab_size": 262208,
}
# What the whole says of images, and what counts for text too.
IMAGES = (
    *("boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image"),
    *("boi_token_id", "eoi_token_id", "image_token_id", "vision_config"),
)
SHARED = ("eos_token_id", "pad_token_id", "tie_word_embeddings")


def config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`."""
    told = with_defaults(hf_config, DEFAULTS)
    every = require(
        told, "sliding_window_pattern", int, require(told, "_sliding_window_pattern", int, 6)
    )
    windows = sliding_windows(told, used=True, slides=lambda layer: (layer + 1) % every != 0)
    full, sliding = ropes_by_kind(told, theta=1000000.0, local=10000.0)
    return decoder_config(
        told,
        built_in={"hidden_act": ("gelu_pytorch_tanh",)},
        rope=full,
        ropes=tuple(sliding if window else full for window in windows),
        windows=windows,
        qk_norm=True,
        **gemma2.fields(told),
    )


def config_of_text(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `text_config` of a `config.json`."""
    inner = hf_config.get("text_config")
    if not isinstance(inner, Mapping):
        raise InputError("config.json: text_config", expected="an object", found=f"{inner!r:.60}")
    for key in IMAGES:
        hf_config.get(key)
    shared = {key: hf_config.get(key) for key in SHARED}
    text = Keys({**inner, **{key: value for key, value in shared.items() if value is not None}})
    made = config(text)
    refuse_unread(inner, text.read, known("config"), "config.json: text_config of Gemma 3")
    return made


GEMMA3 = Architecture(config=config, other_names=("gemma3_text", "Gemma3TextModel"))
GEMMA3_WITH_IMAGES = Architecture(
    config=config_of_text,
    other_names=("gemma3", "Gemma3Model"),
    names=(
        Rule(name=r"(?:model\.)?(?:vision_tower|vision_model|multi_modal_projector)\..+", paths=()),
        Rule(name=r"(?:model\.)?(?:language_model\.)?(?:model\.)?(.+)", paths=(r"\1",)),
    ),
)
