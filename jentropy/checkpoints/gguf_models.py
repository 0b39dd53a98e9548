"""What llama.cpp asks of a GGUF file beside weights: names of its own, sizes, a vocabulary.

Llama, Mistral, Qwen2 and Qwen3 are told as convert_hf_to_gguf.py, its converter, tells them. Others
and those with a rope that is scaled, with windows, or with biases that it has no place for, keep
their names of Hugging Face: packages that read GGUF take them, llama.cpp does not.

A vocabulary is byte-level BPE whose text is cut by a rule that llama.cpp knows by name; of any
other the file says that it has none, and llama.cpp takes numbers of tokens only. It leaves out the
normal form (NFC) that Qwen's tokenizers bring text into.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.errors import InputError, said
from jentropy.schema import OBJECT, parse

from .contents import CONFIG, TOKENIZER
from .gguf_writing import Value, typed

MOST_TOKENS = 1 << 22  # of a vocabulary
OTHER: dict[str, Value] = {"general.architecture": "jentropy"}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
TURNED = "llama"  # whose queries and keys have the two halves of a head's rope side by side
WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Rules by which text is cut before BPE, as tokenizer.json has them, and llama.cpp's names.
GPT2 = ""  # ByteLevel's own
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    GPT2: "gpt-2",
    QWEN2: "qwen2",
    QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1): "llama-bpe",
}
NORMAL, CONTROL, USERS, UNUSED = 1, 3, 4, 5  # types of tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a file says.

    Attributes:
      metadata: its keys.
      names: of tensors, by those of Hugging Face.
      heads: of tensors whose rows are turned, by those of Hugging Face.
    """

    metadata: dict[str, Value]
    names: dict[str, str]
    heads: dict[str, int]

    def rows(self, name: str, count: int) -> np.ndarray | None:
        """The order of a tensor's rows; None: as they are."""
        heads = self.heads.get(name)
        if heads is None:
            return None
        return np.arange(count).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def told(texts: Mapping[str, str], names: list[str]) -> Told:
    """What a file is to say of a model.

    Args:
      texts: by name, `config.json` among them.
      names: of its tensors.

    Raises:
      InputError: a config or a tokenizer that says what no file can say.
    """
    try:
        made = _told(texts, names)
        for value in made.metadata.values():
            typed(value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as e:
        expected = "what a GGUF file can say"
        raise InputError(f"{CONFIG} and {TOKENIZER}", expected=expected, found=said(e)) from e
    return made


def _told(texts: Mapping[str, str], names: list[str]) -> Told:
    config = parse(OBJECT, texts[CONFIG], Path(CONFIG))
    renamed = {name: _name(name) for name in names}
    if not _is_known(config) or None in renamed.values():
        return Told(metadata=dict(OTHER), names={name: name for name in names}, heads={})
    architecture = ARCHITECTURES[config["model_type"]]
    heads = config["num_attention_heads"]
    of_keys = config.get("num_key_value_heads", heads)
    turned = {
        name: heads if ".q_proj." in name else of_keys
        for name in names
        if architecture == TURNED and (".q_proj." in name or ".k_proj." in name)
    }
    return Told(
        metadata={
            "general.architecture": architecture,
            "general.type": "model",
            "general.quantization_version": 2,
            **{f"{architecture}.{key}": value for key, value in _sizes(config).items()},
            **_vocabulary(config, texts),
        },
        names={name: found for name, found in renamed.items() if found is not None},
        heads=turned,
    )


def _name(name: str) -> str | None:
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    found = WHOLE.get(module) if layer is None else PARTS.get(layer[2])
    if found is None or kind not in ("weight", "bias"):
        return None
    return f"{found}.{kind}" if layer is None else f"blk.{layer[1]}.{found}.{kind}"


def _object(told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = told.get(key)
    return found if isinstance(found, Mapping) else {}


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(config, "rope_parameters") or _object(config, "rope_scaling")


def _is_known(config: Mapping[str, Any]) -> bool:
    rope, kind = _rope(config), config.get("model_type")
    slides = config.get("use_sliding_window", kind == "mistral") and config.get("sliding_window")
    return (
        kind in ARCHITECTURES
        and rope.get("rope_type", rope.get("type", "default")) == "default"
        and not slides
        and not config.get("attention_bias")
        and not config.get("mlp_bias")
        and config.get("hidden_act") == "silu"
    )


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    theta = config.get("rope_theta", _rope(config).get("rope_theta", 10000.0))
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads", heads),
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": width,
        "rope.freq_base": float(theta),
    }


def _vocabulary(config: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    tokenizer = parse(OBJECT, texts.get(TOKENIZER, "{}"), Path(TOKENIZER))
    model, rule = _object(tokenizer, "model"), _cut(_object(tokenizer, "pre_tokenizer"))
    cut = None if rule is None else CUTS.get(rule)
    if model.get("type") != "BPE" or cut is None or not _is_left_alone(tokenizer):
        return {"tokenizer.ggml.model": "none"}
    if (size := config["vocab_size"]) > MOST_TOKENS:
        raise InputError(f"{CONFIG}: vocab_size", expected=f"at most {MOST_TOKENS}", found=size)
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    added = {one["content"]: one for one in tokenizer.get("added_tokens", [])}
    ids = model["vocab"] | {text: one["id"] for text, one in added.items()}
    for text, number in ids.items():
        tokens[number] = text
        kinds[number] = NORMAL
        if text in added:
            kinds[number] = CONTROL if added[text]["special"] else USERS
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    ends = {}
    for key in ("bos", "eos"):
        number = config.get(f"{key}_token_id")
        number = number[0] if isinstance(number, list) else number
        if number is not None:
            ends[f"tokenizer.ggml.{key}_token_id"] = number
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": _begins(_object(tokenizer, "post_processor")),
        **ends,
    }


def _is_left_alone(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text is cut as it is, or in a normal form that most is in."""
    rule = tokenizer.get("normalizer")
    return rule is None or rule.get("type") == "NFC"


def _cut(rule: Mapping[str, Any]) -> str | None:
    """The expression by which a `pre_tokenizer` cuts text; None: another kind."""
    parts = rule["pretokenizers"] if rule.get("type") == "Sequence" else [rule]
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        own = parts[0].get("use_regex", True) and not parts[0].get("add_prefix_space")
        return GPT2 if own else None
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        return parts[0]["pattern"].get("Regex") if parts[0]["behavior"] == "Isolated" else None
    return None


def _begins(rule: Mapping[str, Any]) -> bool:
    """Whether a `post_processor` puts a token before a text."""
    rules = rule["processors"] if rule.get("type") == "Sequence" else [rule]
    return any("SpecialToken" in one for each in rules for one in each.get("single", [])[:1])
