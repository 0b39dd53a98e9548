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

from .keys import Keys, known, refuse_unread, require

# What each kind of rope reads beside its base: fields of `RopeConfig` by keys of the config.
_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_context",
}
ROPE_TYPES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": _LLAMA3,
}
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
    values = {
        field: require(told, key, int if field == "original_context" else float)
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
    frequency = (1.0 / np.float32(config.theta) ** exponents).astype(np.float32)
    if config.kind == "linear":
        return (frequency / config.factor).astype(np.float32)
    if config.kind != "llama3":
        return frequency
    # Long wavelengths are slowed by `factor`, short ones kept, those between blended.
    wavelength = 2 * math.pi / frequency
    low, high = config.low_freq_factor, config.high_freq_factor
    blend = np.clip((config.original_context / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - blend) * frequency / config.factor + blend * frequency).astype(np.float32)


def rotate(
    x: Float[Array, "batch time heads head_dim"],
    positions: Int[Array, "*batches time"],
    frequencies: Float[Array, " pairs"],
) -> Float[Array, "batch time heads head_dim"]:
    """Rotates channel i against channel i + head_dim / 2 by position * frequency i.

    Args:
      positions: int32[time], or [batch, time].
    """
    angle = positions.astype(jnp.float32)[..., None] * frequencies
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return jax.lax.convert_element_type(rotated, x.dtype)
