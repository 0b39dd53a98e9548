"""What a decoder is built from, read from a Hugging Face `config.json`.

A key that is missing or null stands for what transformers takes it for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jentropy.errors import InputError, UnsupportedError

from .expert_config import ExpertsConfig
from .keys import KNOWN, MOST_LAYERS, flag, known, layer_count, require, token_ids
from .names import NAMES, Rule
from .rope import RopeConfig, rotated_channels
from .rope_keys import rope_config

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
# Names of a block's norms, by where they are: before and after attention, before and after the MLP.
NORMS: Mapping[str, tuple[str | None, ...]] = {
    "before": ("input_layernorm", None, "post_attention_layernorm", None),
    "after": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
# What every decoder here does, and the values by which configs say so.
BUILT_IN: Mapping[str, Sequence[Any]] = {
    **KNOWN["built_in"],
    **{
        f"{before}{switch}": (True,)
        for switch in known("switches")
        for before in ("", "use_", "is_", "apply_", "do_")
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What tells one layer of a model from another.

    A field that is no number changes the program, and belongs to `kind`.
    """

    rope: RopeConfig | None  # None: its tokens have no positions
    window: int | None = None  # positions that a token sees, its own included; None: all before it
    routed: bool = False  # experts in the place of the MLP

    @property
    def kind(self) -> Hashable:
        """What layers of one stack, which run as one program, have in common."""
        return self.window is None, self.rope.rotated if self.rope else 1.0, self.routed


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Sizes of multi-head latent attention, by their names in DeepSeek's configs.

    Example:
      >>> sizes = LatentConfig(q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128,
      ...     qk_rope_head_dim=64, v_head_dim=128)
      >>> sizes.absorbs(1), sizes.absorbs(512)
      (True, False)
    """

    q_lora_rank: int | None  # of the latents that queries are made of; None: there are none
    kv_lora_rank: int  # of those that keys and values are made of
    qk_nope_head_dim: int  # channels of q and k in each head that have no position
    qk_rope_head_dim: int  # and those that are rotated: of k one for all heads
    v_head_dim: int
    rope_interleave: bool = True  # channels rotated against each other lie side by side

    def absorbs(self, queries: int) -> bool:
        """Whether so few queries cost less with the latents as keys and values."""
        rank, made = self.kv_lora_rank, self.qk_nope_head_dim + self.v_head_dim
        return queries * (2 * rank - made) < rank * made  # products for a slot and a head


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer with grouped-query attention and a gated MLP.

    Raises:
      InputError: sizes that do not fit each other, an activation that there is not.

    Example:
      >>> config = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2,
      ...     num_heads=2, num_kv_heads=1, head_dim=8, rms_norm_eps=1e-6,
      ...     rope=RopeConfig(theta=1e4), tie_word_embeddings=True, windows=(4, None))
      >>> [layer.window for layer in config.layers()]
      [4, None]
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # with `latent` that of the rotated part
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool  # the output projection is the embedding
    norms: str = "before"  # attention and MLP, "after" them (OLMo 2) or "both" (Gemma 2)
    norm_offset: float = 0.0  # added to the weights of norms (1: Gemma)
    norm_in_float32: bool = False  # norms are rounded after they are multiplied by their weights
    qk_norm: bool = False  # RMS norm over each head of q and k (Qwen3)
    qk_norm_whole: bool = False  # or over all heads of them together (OLMo 2)
    attention_bias: bool = False  # biases on q, k and v
    output_bias: bool = False  # a bias on o
    attention_sinks: bool = False  # a score per head that takes its share and adds nothing
    mlp_bias: bool = False
    activation: str = "silu"
    embedding_multiplier: float = 1.0  # of what the embedding gives
    embedding_multiplier_rounded: bool = False  # to the activations' dtype (Gemma)
    residual_multiplier: float = 1.0  # of what attention and MLP add
    attention_scale: float | None = None  # of scores; None: 1 / sqrt(head_dim)
    attention_soft_cap: float | None = None  # scores are cap * tanh(scores / cap) (Gemma 2)
    logits_scaling: float = 1.0  # logits are divided by it
    logits_soft_cap: float | None = None
    max_position_embeddings: int = 2048  # generation beyond it is refused
    eos_token_ids: tuple[int, ...] = ()  # generation of a sequence ends at any of them
    pad_token_id: int = 0  # what follows the end
    latent: LatentConfig | None = None  # keys and values come from latents (DeepSeek)
    experts: ExpertsConfig | None = None  # of the layers that have them in the place of the MLP
    routed: tuple[bool, ...] = ()  # by layer, whether it has; none: all layers, if there are any
    extra_layers: int = 0  # after the last, for further tokens: their weights are left out
    windows: tuple[int | None, ...] = ()  # by layer, see `Layer`; none: every layer sees all
    ropes: tuple[RopeConfig | None, ...] = ()  # by layer, see `Layer`; none: `rope` for all

    def __post_init__(self) -> None:
        windows, ropes, routed = len(self.windows), len(self.ropes), len(self.routed)
        extra = self.extra_layers
        groups = f"a multiple of num_key_value_heads = {self.num_kv_heads}"
        for name, value, holds, expected in (
            ("num_attention_heads", self.num_heads, not self.num_heads % self.num_kv_heads, groups),
            ("rms_norm_eps", self.rms_norm_eps, self.rms_norm_eps >= 0, "0 or more"),
            ("head_dim", self.head_dim, not self.head_dim % 2, "an even number"),
            ("extra_layers", extra, extra <= MOST_LAYERS, f"at most {MOST_LAYERS}"),
            ("windows", windows, not (self.latent and any(self.windows)), "none with latents"),
            ("windows", windows, windows in (0, self.num_layers), f"{self.num_layers}, by layer"),
            ("ropes", ropes, ropes in (0, self.num_layers), f"{self.num_layers}, by layer"),
            ("routed", routed, routed in (0, self.num_layers), f"{self.num_layers}, by layer"),
            ("routed", self.routed, self.experts or not any(self.routed), "none without experts"),
            ("attention_scale", self.attention_scale, self.attention_scale != 0, "not 0"),
            ("attention_soft_cap", self.attention_soft_cap, self.attention_soft_cap != 0, "not 0"),
            ("logits_soft_cap", self.logits_soft_cap, self.logits_soft_cap != 0, "not 0"),
            ("logits_scaling", self.logits_scaling, self.logits_scaling != 0, "not 0"),
            ("norms", self.norms, self.norms in NORMS, " or ".join(NORMS)),
        ):
            if not holds:
                raise InputError(name, expected=expected, found=value)
        if self.activation not in ACTIVATIONS:
            raise UnsupportedError(
                "hidden_act", expected=" or ".join(ACTIVATIONS), found=self.activation
            )

        for rope in filter(None, {self.rope, *self.ropes}):
            rotated_channels(rope, self.head_dim)

    @property
    def outgrown(self) -> int | None:
        """See `RopeConfig.outgrown`."""
        return next((rope.outgrown for rope in (self.rope, *self.ropes) if rope), None)

    def layers(self) -> tuple[Layer, ...]:
        """The layers, one after the other."""
        windows = self.windows or (None,) * self.num_layers
        ropes = self.ropes or (self.rope,) * self.num_layers
        routed = self.routed or (self.experts is not None,) * self.num_layers
        each = zip(ropes, windows, routed, strict=True)
        return tuple(Layer(rope=r, window=w, routed=e) for r, w, e in each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How a model is read from a checkpoint.

    Attributes:
      config: reads `config.json`; what it returns says which layers there are.
      other_names: its `model_type`, and the class that is saved without an output projection.
      names: where weights go, by their names in the checkpoint.
      own_code: classes that published models bring along as code of their own (`auto_map`), and
        that compute the same.
    """

    config: Callable[[Mapping[str, Any]], DecoderConfig]
    other_names: tuple[str, ...]
    names: tuple[Rule, ...] = NAMES
    own_code: tuple[str, ...] = ()


def sliding_windows(
    config: Mapping[str, Any],
    *,
    used: bool,
    first: int = 0,
    slides: Callable[[int], bool] | None = None,
) -> tuple[int | None, ...]:
    """Of every layer the positions that a token sees; None where it sees all before it.

    Args:
      used: whether a `sliding_window` counts where `use_sliding_window` is missing.
      first: layer from which on it counts where `max_window_layers` is missing.
      slides: whether a layer slides where `layer_types` is missing; None: all from the first on.
    """
    told, used = config.get("sliding_window"), flag(config, "use_sliding_window", used)
    window = require(config, "sliding_window") if told and used else None
    first = require(config, "max_window_layers", float, first)
    kinds, layers = config.get("layer_types"), layer_count(config)
    if not kinds:
        if slides is None:
            short = window and window < require(config, "max_position_embeddings", int, 2048)
            slides = (lambda layer: layer >= first) if short else (lambda layer: False)
        return tuple(window if slides(layer) else None for layer in range(layers))
    windows = {"full_attention": None} | ({"sliding_attention": window} if window else {})
    kinds = kinds if isinstance(kinds, list) else [kinds]
    unknown = [kind for kind in kinds if kind not in list(windows)]
    if unknown or len(kinds) != layers:
        raise UnsupportedError(
            "config.json: layer_types",
            expected=f"{layers} of {' and '.join(windows)}",
            found=f"{unknown or kinds!r:.60}",
        )
    return tuple(windows[kind] for kind in kinds)


def no_windows(config: Mapping[str, Any], *, used: bool) -> tuple[int | None, ...]:
    """The same, of architectures that have none here.

    Raises:
      UnsupportedError: a layer sees a part of the past only.
    """
    windows = sliding_windows(config, used=used)
    if any(windows):
        raise UnsupportedError(
            "config.json: sliding_window, by use_sliding_window and layer_types",
            expected="none, or max_position_embeddings at least",
            found=max(filter(None, windows)),
        )
    return windows


def decoder_config(
    config: Mapping[str, Any],
    *,
    built_in: Mapping[str, Sequence[Any]] | None = None,
    **architecture: Any,
) -> DecoderConfig:
    """What every architecture reads alike.

    Args:
      config: `config.json`, with `generation_config.json`'s `eos_token_id` merged in if it has one.
      built_in: what this architecture always does, and the values by which configs say so.
      **architecture: the fields that the architecture sets itself.
    """
    for key, values in {**BUILT_IN, **(built_in or {})}.items():
        if (value := config.get(key)) is not None and value not in values:
            expected = " or ".join(map(str, values))
            raise UnsupportedError(f"config.json: {key}", expected=expected, found=f"{value!r:.60}")
    heads, hidden = require(config, "num_attention_heads"), require(config, "hidden_size")
    rope = architecture.get("rope") or rope_config(config)
    positions = require(config, "max_position_embeddings", int, 2048)
    if rope.kind == "dynamic":  # made for longer sequences than the config says
        positions = int(positions * rope.factor)
    ends, bias = token_ids(config, "eos_token_id"), flag(config, "attention_bias")
    fields: dict[str, Any] = {
        "vocab_size": require(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": require(config, "intermediate_size"),
        "num_layers": layer_count(config),
        "num_heads": heads,
        "num_kv_heads": require(config, "num_key_value_heads", int, heads),
        "head_dim": require(config, "head_dim", int, hidden // heads),
        "rms_norm_eps": require(config, "rms_norm_eps", float, 1e-6),
        "rope": rope,
        "tie_word_embeddings": flag(config, "tie_word_embeddings"),
        "attention_bias": bias,
        "output_bias": bias,
        "mlp_bias": flag(config, "mlp_bias"),
        "activation": str(config.get("hidden_act") or "silu"),
        "max_position_embeddings": positions,
        "eos_token_ids": ends,
        "pad_token_id": (*token_ids(config, "pad_token_id"), *ends, 0)[0],
    }
    return DecoderConfig(**{**fields, **architecture})
