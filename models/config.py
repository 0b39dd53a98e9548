"""What a decoder is built from, read from a Hugging Face `config.json`.

A key that is missing or null stands for what transformers takes it for.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from jentropy.errors import InputError, UnsupportedError

from .keys import flag, require, token_ids
from .rope_config import RopeConfig, rope_config

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
# What every decoder here does, under the names by which other configs say that they do not.
BUILT_IN: Mapping[str, tuple[Any, ...]] = {
    "activation": ("swiglu", "silu"),
    "is_causal": (True,),
    "norm_type": ("rmsnorm", "rms_norm"),
    "position_embedding_type": ("rope", "rotary"),
    "rope_percent": (1,),
    "rope_pct": (1,),
    "rotary_fraction": (1,),
    "rotary_pct": (1,),
    "rotary_percent": (1,),
}
# Switches of what every decoder here does, with or without `use_`, `is_`, `apply_` or `do_`.
_SWITCHES = """
    causal causal_attention causal_mask gated_ffn gated_mlp glu layer_norm_before neox_style
    normalize_before pre_layernorm pre_norm rms_norm rmsnorm rope rope_is_neox_style rotary
    rotary_emb rotary_embedding rotary_embeddings rotary_pos_emb rotary_position_embedding
    rotary_position_embeddings scale_attention scale_attn_weights swiglu
"""
ALWAYS_ON = frozenset(
    f"{before}{name}"
    for name in _SWITCHES.split()
    for before in ("", "use_", "is_", "apply_", "do_")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What tells one layer of a model from another.

    A field that is no number changes the program, and belongs to `kind`.
    """

    rope: RopeConfig
    window: int | None = None  # positions that a token sees, its own included; None: all before it

    @property
    def kind(self) -> Hashable:
        """What layers of one stack, which run as one program, have in common."""
        return self.window is None


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
    attention_bias: bool = False  # biases on q, k and v
    output_bias: bool = False  # a bias on o
    mlp_bias: bool = False
    activation: str = "silu"
    max_position_embeddings: int = 2048  # generation beyond it is refused
    eos_token_ids: tuple[int, ...] = ()  # generation of a sequence ends at any of them
    pad_token_id: int = 0  # what follows the end
    windows: tuple[int | None, ...] = ()  # by layer, see `Layer`; none: every layer sees all

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                "num_attention_heads",
                expected=f"a multiple of num_key_value_heads = {self.num_kv_heads}",
                found=self.num_heads,
            )
        if self.rms_norm_eps < 0:
            raise InputError("rms_norm_eps", expected="0 or more", found=self.rms_norm_eps)
        if self.head_dim % 2:
            raise InputError("head_dim", expected="an even number", found=self.head_dim)
        if self.activation not in ACTIVATIONS:
            raise UnsupportedError(
                "hidden_act", expected=" or ".join(ACTIVATIONS), found=self.activation
            )

    def layers(self) -> tuple[Layer, ...]:
        """The layers, one after the other."""
        windows = self.windows or (None,) * self.num_layers
        return tuple(Layer(rope=self.rope, window=window) for window in windows)


def refuse_windows(config: Mapping[str, Any], *, used: bool) -> None:
    """Raises UnsupportedError if a layer sees a part of the past only.

    Args:
      used: whether a `sliding_window` counts where `use_sliding_window` is missing.
    """
    kinds = config.get("layer_types") or []
    others = [kind for kind in kinds if kind != "full_attention"]
    if others:
        raise UnsupportedError(
            "config.json: layer_types", expected="full_attention only", found=others[0]
        )
    window, positions = config.get("sliding_window"), config.get("max_position_embeddings")
    layers, first = config.get("num_hidden_layers"), config.get("max_window_layers")
    used = flag(config, "use_sliding_window", used)
    if kinds or not used or not window:
        return
    sees_all = _at_least(window, positions)
    full_layers_only = _at_least(first, layers)
    if not (sees_all or full_layers_only):
        raise UnsupportedError(
            "config.json: sliding_window, by use_sliding_window",
            expected="null, or max_position_embeddings at least",
            found=f"{window!r:.60}",
        )


def _at_least(value: Any, least: Any) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, least))
    return numbers and value >= least


def decoder_config(config: Mapping[str, Any], **architecture: Any) -> DecoderConfig:
    """What every architecture reads alike.

    Args:
      config: `config.json`, with `generation_config.json`'s `eos_token_id` merged in if it has one.
      **architecture: the fields that the architecture sets itself.
    """
    for key, values in {**BUILT_IN, **dict.fromkeys(ALWAYS_ON, (True,))}.items():
        if (value := config.get(key)) is not None and value not in values:
            expected = " or ".join(map(str, values))
            raise UnsupportedError(f"config.json: {key}", expected=expected, found=f"{value!r:.60}")
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
        "rms_norm_eps": require(config, "rms_norm_eps", float, 1e-6),
        "rope": rope_config(config),
        "tie_word_embeddings": flag(config, "tie_word_embeddings"),
        "attention_bias": flag(config, "attention_bias"),
        "output_bias": flag(config, "attention_bias"),
        "mlp_bias": flag(config, "mlp_bias"),
        "activation": str(config.get("hidden_act") or "silu"),
        "max_position_embeddings": require(config, "max_position_embeddings", int, 2048),
        "eos_token_ids": ends,
        "pad_token_id": pad,
    }
    return DecoderConfig(**{**fields, **architecture})
