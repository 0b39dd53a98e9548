"""Rotary position embedding, in the half-rotation layout of Hugging Face checkpoints.

transformers 5 writes `rope_parameters`; most published models carry `rope_theta` and
`rope_scaling`. Where two places say different things, so would two readers: that is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jentropy.errors import InputError, UnsupportedError

from .keys import Keys, flag, known, refuse_unread, require

# What each kind of rope reads beside its base: fields of `RopeConfig` by keys of the config.
_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_context",
}
_YARN = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    **{key: key for key in ("beta_fast", "beta_slow", "attention_factor")},
    **{key: key for key in ("mscale", "mscale_all_dim", "truncate")},
}
ROPE_TYPES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": _LLAMA3,
    "yarn": _YARN,
}
# What stands for keys that are missing; all others must be there.
_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0} | dict.fromkeys(
    ("attention_factor", "mscale", "mscale_all_dim"), 0.0
)
_BESIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding.

    Raises:
      InputError: parameters out of range; an `UnsupportedError` for a kind that there is not.

    Example:
      >>> inverse_frequencies(RopeConfig(theta=1e4, kind="linear", factor=2.0), 4)
      array([0.5  , 0.005], dtype=float32)

    References:
      Su et al., RoFormer, arXiv 2104.09864; Llama 3.1's frequency scaling (arXiv 2407.21783);
      Peng et al., YaRN, arXiv 2309.00071.
    """

    theta: float  # base of the frequencies
    kind: str = "default"  # one of ROPE_TYPES
    factor: float = 1.0  # context extension; "linear" divides positions by it
    low_freq_factor: float = 1.0  # "llama3": wavelengths above context / this are scaled
    high_freq_factor: float = 4.0  # "llama3": wavelengths below context / this are kept
    original_context: int = 8192  # "llama3", "yarn": context that the model was first trained on
    beta_fast: float = 32.0  # "yarn": channels with more turns within that context are kept
    beta_slow: float = 1.0  # "yarn": channels with fewer turns are scaled
    truncate: bool = True  # "yarn": the two bounds are rounded to whole channels
    attention_factor: float = 0.0  # "yarn": of cosines and sines; 0: as the next two have it
    mscale: float = 0.0  # "yarn": growth of that factor with log(factor)
    mscale_all_dim: float = 0.0  # "yarn": what of it is left to attention's scale (DeepSeek)

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
        if self.kind == "yarn" and not 0 < self.beta_slow <= self.beta_fast:
            raise InputError(
                "rope parameters: beta_slow",
                expected=f"above 0, beta_fast = {self.beta_fast} at most",
                found=self.beta_slow,
            )
        if not (self.attention_factor >= 0 <= self.mscale and self.mscale_all_dim >= 0):
            raise InputError("rope parameters: factors", expected="0 or more", found=self)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by.

        Example:
          >>> round(RopeConfig(theta=1e4, kind="yarn", factor=32.0).amplitude, 4)
          1.3466
        """
        if self.kind != "yarn":
            return 1.0
        if self.mscale and self.mscale_all_dim:
            derived = self._growth(self.mscale) / self._growth(self.mscale_all_dim)
        else:
            derived = self._growth(1.0)
        return self.attention_factor or derived

    @property
    def attention_scale(self) -> float:
        """What DeepSeek multiplies attention's scale by.

        Example:
          >>> rope = RopeConfig(theta=1e4, kind="yarn", factor=4.0, mscale_all_dim=1.0)
          >>> round(rope.attention_scale, 4)
          1.2965
        """
        return self._growth(self.mscale_all_dim) ** 2 if self.kind == "yarn" else 1.0

    def _growth(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(max(self.factor, 1.0)) + 1.0


def rope_config(config: Mapping[str, Any]) -> RopeConfig:
    """Reads `rope_parameters`, or `rope_theta` and `rope_scaling`."""
    told = Keys({})
    places = {place: config.get(place) or {} for place in ("rope_parameters", "rope_scaling")}
    for place, inner in {**places, "": {key: config.get(key) for key in _BESIDE}}.items():
        if not isinstance(inner, Mapping):
            raise InputError(f"config.json: {place}", expected="an object", found=inner)
        for key, value in inner.items():
            name = "rope_type" if key == "type" else key
            if value is not None and told.data.setdefault(name, value) != value:
                expected = f"{told[name]!r:.60} in all places"
                raise InputError(f"config.json: {name}", expected=expected, found=value)
    kind = str(told.get("rope_type") or "default")
    defaults = dict(_DEFAULTS)
    if kind == "yarn":
        length = require(config, "max_position_embeddings", int, 2048)
        original = told.get("original_max_position_embeddings")
        defaults["original_max_position_embeddings"] = length
        defaults["factor"] = length / original if original else None
    values = {
        field: flag(told, key, True)
        if field == "truncate"
        else require(told, key, int if field == "original_context" else float, defaults.get(key))
        for key, field in ROPE_TYPES.get(kind, {}).items()
    }
    rope = RopeConfig(kind=kind, theta=require(told, "rope_theta", float, 10000.0), **values)
    partial = require(told, "partial_rotary_factor", float, 1.0)
    if partial != 1.0:
        raise UnsupportedError("config.json: partial_rotary_factor", expected="1", found=partial)
    where = f"config.json: rope parameters of {kind!r}"
    refuse_unread(told.data, told.read, known("rope"), where)
    return rope


def inverse_frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    """Angular frequency of each pair of channels: float32[head_dim / 2], radians per position."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    periods = np.float32(config.theta) ** exponents
    frequency = (1.0 / periods).astype(np.float32)
    if config.kind == "linear":
        return (frequency / config.factor).astype(np.float32)
    if config.kind == "yarn":
        return _yarn(config, head_dim, periods)
    if config.kind != "llama3":
        return frequency
    # Long wavelengths are slowed by `factor`, short ones kept, those between blended.
    wavelength = 2 * math.pi / frequency
    low, high = config.low_freq_factor, config.high_freq_factor
    blend = np.clip((config.original_context / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - blend) * frequency / config.factor + blend * frequency).astype(np.float32)


def _yarn(config: RopeConfig, head_dim: int, periods: np.ndarray) -> np.ndarray:
    """Channels that turn often within the original context are kept, those that do not slowed."""

    def channel(turns: float) -> float:
        share = config.original_context / (turns * 2 * math.pi)
        return head_dim * math.log(share) / (2 * math.log(config.theta))

    low, high = channel(config.beta_fast), channel(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    wide = np.float32(high - low if high != low else 0.001)
    slowed = np.clip((np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / wide, 0, 1)
    kept = np.float32(1) - slowed
    factor = np.float32(config.factor)
    return (1 / (factor * periods) * (1 - kept) + 1 / periods * kept).astype(np.float32)


def rotate(
    x: Float[Array, "batch time heads head_dim"],
    positions: Int[Array, "*batches time"],
    frequencies: Float[Array, " pairs"],
    amplitude: Float[Array, ""] | float = 1.0,
    *,
    interleaved: bool = False,
) -> Float[Array, "batch time heads head_dim"]:
    """Rotates channel i against channel i + head_dim / 2 by position * frequency i.

    Args:
      positions: int32[time], or [batch, time].
      amplitude: what cosines and sines are multiplied by, see `RopeConfig.amplitude`.
      interleaved: whether x has channels that are rotated against each other side by side; the
        result has them half of the channels apart.
    """
    angle = positions.astype(jnp.float32)[..., None] * frequencies
    cos, sin = (amplitude * of(angle)[..., None, :] for of in (jnp.cos, jnp.sin))
    wide = x.astype(jnp.float32)
    first, second = (
        (wide[..., 0::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
    )
    rotated = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return jax.lax.convert_element_type(rotated, x.dtype)
