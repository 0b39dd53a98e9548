"""Rotary position embedding, in the half-rotation layout of Hugging Face checkpoints."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    """Angular frequency of each pair of channels: float32[head_dim / 2], radians per position."""
    frequency = (
        1.0 / np.float32(config.theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    ).astype(np.float32)
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
    positions: Int[Array, " time"],
    frequencies: np.ndarray,
) -> Float[Array, "batch time heads head_dim"]:
    """Rotates channel i against channel i + head_dim / 2 by position * frequency i."""
    angle = positions.astype(jnp.float32)[:, None] * frequencies
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return jax.lax.convert_element_type(rotated, x.dtype)
