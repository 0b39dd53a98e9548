"""What a decoder is built from, read from a Hugging Face `config.json`.

Old and new key names are both read: transformers 5 writes `rope_parameters` and `dtype`, most
published models carry `rope_theta`, `rope_scaling` and `torch_dtype`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jentropy.errors import InputError, UnsupportedError

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding.

    References:
      Su et al., RoFormer, arXiv 2104.09864; Llama 3.1's frequency scaling (arXiv 2407.21783).
    """

    theta: float  # base of the frequencies
    kind: str = "default"  # one of ROPE_TYPES
    factor: float = 1.0  # context extension; "linear" divides positions by it
    low_freq_factor: float = 1.0  # "llama3": wavelengths above context / this are scaled
    high_freq_factor: float = 4.0  # "llama3": wavelengths below context / this are kept
    original_context: int = 8192  # "llama3": context that the model was first trained on

    def __post_init__(self) -> None:
        if self.kind not in ROPE_TYPES:
            raise UnsupportedError("rope type", expected=" or ".join(ROPE_TYPES), found=self.kind)
        if not (math.isfinite(self.theta) and self.theta > 0 and self.factor > 0):
            raise InputError("rope parameters", expected="positive numbers", found=self)
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise InputError(
                "rope parameters: low_freq_factor",
                expected=f"below high_freq_factor = {self.high_freq_factor}",
                found=self.low_freq_factor,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer with grouped-query attention and a gated MLP."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool  # the output projection is the embedding
    qk_norm: bool = False  # RMS norm over each head of q and k (Qwen3)
    attention_bias: bool = False  # biases on q, k, v and o
    mlp_bias: bool = False
    activation: str = "silu"
    max_position_embeddings: int = 2048  # generation beyond it is refused
    eos_token_ids: tuple[int, ...] = ()  # generation of a sequence ends at any of them
    pad_token_id: int = 0  # what follows the end

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                "num_attention_heads",
                expected=f"a multiple of num_key_value_heads = {self.num_kv_heads}",
                found=self.num_heads,
            )
        if self.head_dim % 2:
            raise InputError("head_dim", expected="an even number", found=self.head_dim)
        if self.activation not in ACTIVATIONS:
            raise UnsupportedError(
                "hidden_act", expected=" or ".join(ACTIVATIONS), found=self.activation
            )


def require(config: Mapping[str, Any], key: str, kind: type = int, default: Any = None) -> Any:
    """The value of a key as `kind`: a positive integer or a finite number.

    Args:
      default: what a key that is missing or null stands for; None: it must be there.
    """
    value = config.get(key)
    value = default if value is None else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and (kind is float or (value == int(value) > 0))):
        expected = "a positive integer" if kind is int else "a number"
        raise InputError(f"config.json: key {key!r}", expected=expected, found=f"{value!r:.60}")
    return kind(value)


def token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The token ids of a key: one, a list, or none."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < 1 << 31:
            raise InputError(
                f"config.json: key {key!r}", expected="token ids", found=f"{value!r:.60}"
            )
    return tuple(ids)


def rope_config(config: Mapping[str, Any]) -> RopeConfig:
    """Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise InputError("config.json: rope parameters", expected="an object", found=scaling)
    values = {
        "theta": require({**config, **scaling}, "rope_theta", float, 10000.0),
        "factor": require(scaling, "factor", float, 1.0),
        "low_freq_factor": require(scaling, "low_freq_factor", float, 1.0),
        "high_freq_factor": require(scaling, "high_freq_factor", float, 4.0),
        "original_context": require(scaling, "original_max_position_embeddings", int, 8192),
    }
    partial = require({**config, **scaling}, "partial_rotary_factor", float, 1.0)
    if partial != 1.0:
        raise UnsupportedError("config.json: partial_rotary_factor", expected="1", found=partial)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return RopeConfig(kind=str(kind), **values)


def decoder_config(config: Mapping[str, Any], **architecture: Any) -> DecoderConfig:
    """What every architecture reads alike.

    Args:
      config: `config.json`, with `generation_config.json`'s `eos_token_id` merged in if it has one.
      **architecture: the fields that the architecture sets itself.
    """
    heads = require(config, "num_attention_heads")
    hidden = require(config, "hidden_size")
    ends = token_ids(config, "eos_token_id")
    pad = (*token_ids(config, "pad_token_id"), *ends, 0)[0]
    fields: dict[str, Any] = {
        "vocab_size": require(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": require(config, "intermediate_size"),
        "num_layers": require(config, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": require(config, "num_key_value_heads", int, heads),
        "head_dim": require(config, "head_dim", int, hidden // heads),
        "rms_norm_eps": require(config, "rms_norm_eps", float),
        "rope": rope_config(config),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "attention_bias": bool(config.get("attention_bias", False)),
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "activation": str(config.get("hidden_act", "silu")),
        "max_position_embeddings": require(config, "max_position_embeddings", int, 2048),
        "eos_token_ids": ends,
        "pad_token_id": pad,
    }
    return DecoderConfig(**{**fields, **architecture})
