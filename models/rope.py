"""Rotary position embedding, in the half-rotation layout of Hugging Face checkpoints.

The frequencies of "dynamic" and "longrope" follow from the length of the whole sequence, and turn
all tokens of a pass. As in transformers, keys that are cached stay as they were turned when their
own pass was made. Whoever generates should start anew where the length outgrew them
(`RopeConfig.outgrown`), so that tokens are those of one pass. transformers 5.24 does it for Phi-3
only: a Llama of "longrope" says other tokens there once it is beyond its first context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jentropy.errors import InputError, UnsupportedError

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
MOST_FACTOR = 1e6  # of cosines and sines: a square of it is a number still


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
      Peng et al., YaRN, arXiv 2309.00071; Ding et al., LongRoPE, arXiv 2402.13753.
    """

    theta: float  # base of the frequencies
    kind: str = "default"  # one of KINDS
    rotated: float = 1.0  # share of a head's channels that turn, the first ones
    factor: float = 1.0  # context extension; "linear" divides positions by it
    low_freq_factor: float = 1.0  # "llama3": wavelengths above context / this are scaled
    high_freq_factor: float = 4.0  # "llama3": wavelengths below context / this are kept
    original_context: int = 8192  # of all but "default", "linear": what it was first trained on
    beta_fast: float = 32.0  # "yarn": channels with more turns within that context are kept
    beta_slow: float = 1.0  # "yarn": channels with fewer turns are scaled
    truncate: bool = True  # "yarn": the two bounds are rounded to whole channels
    attention_factor: float = 0.0  # "yarn", "longrope": of cosines and sines; 0: by `factor`
    mscale: float = 0.0  # "yarn": growth of that factor with log(factor)
    mscale_all_dim: float = 0.0  # "yarn": what of it is left to attention's scale (DeepSeek)
    short_factors: tuple[float, ...] = ()  # "longrope": frequencies are divided by these
    long_factors: tuple[float, ...] = ()  # "longrope": or these in sequences beyond that context

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnsupportedError("rope type", expected=" or ".join(KINDS), found=self.kind)
        if not (math.isfinite(self.theta) and self.theta > 0 and self.factor > 0):
            raise InputError("rope parameters", expected="positive numbers", found=self)
        if not 0 < self.rotated <= 1:
            raise InputError("partial_rotary_factor", expected="0 to 1", found=self.rotated)
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
        factors = (self.attention_factor, self.mscale, self.mscale_all_dim)
        if not all(0 <= factor < MOST_FACTOR for factor in factors):
            expected = f"0 or more, below {MOST_FACTOR:g}"
            raise InputError("rope parameters: factors", expected=expected, found=factors)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by.

        Example:
          >>> round(RopeConfig(theta=1e4, kind="yarn", factor=32.0).amplitude, 4)
          1.3466
        """
        if self.kind == "longrope":
            growth = math.log(max(self.factor, 1.0)) / math.log(self.original_context)
            return self.attention_factor or math.sqrt(1 + growth)
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

    @property
    def outgrown(self) -> int | None:
        """Length beyond which the keys of a shorter sequence are to be made anew; None: never."""
        return self.original_context if self.kind == "longrope" else None

    def _growth(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(max(self.factor, 1.0)) + 1.0


def frequencies_at(
    config: RopeConfig | None, head_dim: int, length: Int[Array, "*batch"]
) -> Float[Array, "*batch pairs"]:
    """The frequencies of sequences of that length; all 0 where there is no rope."""
    if config is None:
        return jnp.zeros((*length.shape, head_dim // 2), jnp.float32)
    length = length[..., None]
    short = jnp.asarray(inverse_frequencies(config, head_dim))
    if config.kind == "longrope":
        long = jnp.asarray(inverse_frequencies(config, head_dim, long=True))
        return jnp.where(length > config.original_context, long, short)
    if config.kind == "dynamic":
        channels = rotated_channels(config, head_dim)
        length = jnp.maximum(length, config.original_context).astype(jnp.float32)
        growth = config.factor * length / config.original_context - (config.factor - 1)
        base = config.theta * growth ** (channels / (channels - 2))
        return 1.0 / base ** (np.arange(0, channels, 2, dtype=np.float32) / channels)
    return jnp.broadcast_to(short, (*length.shape[:-1], *short.shape))


def rotated_channels(config: RopeConfig, head_dim: int) -> int:
    """How many channels of a head turn.

    Raises:
      InputError: an odd number, or "longrope" has factors for another.
    """
    channels = int(head_dim * config.rotated)
    pairs = {channels // 2}
    if config.kind == "longrope":
        pairs = {len(config.short_factors), len(config.long_factors)}
    if channels % 2 or pairs != {channels // 2}:
        raise InputError(
            "rope parameters",
            expected="an even number of channels, and a factor for each pair of them",
            found=f"{channels} channels, {' and '.join(map(str, sorted(pairs)))} factors",
        )
    return channels


def inverse_frequencies(config: RopeConfig, head_dim: int, *, long: bool = False) -> np.ndarray:
    """Angular frequency of each pair of channels: float32[pairs], radians per position.

    Args:
      long: whether the sequence is longer than the original context, for "longrope".
    """
    head_dim = rotated_channels(config, head_dim)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    periods = np.float32(config.theta) ** exponents
    frequency = (1.0 / periods).astype(np.float32)
    if config.kind == "longrope":
        factors = np.asarray(config.long_factors if long else config.short_factors, np.float32)
        return (1.0 / (factors * periods)).astype(np.float32)
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
    frequencies: Float[Array, "*sequences pairs"],
    amplitude: Float[Array, ""] | float = 1.0,
    *,
    interleaved: bool = False,
) -> Float[Array, "batch time heads head_dim"]:
    """Rotates channel i against channel i + pairs by position * frequency i.

    Channels beyond twice the pairs stay as they are.

    Args:
      positions: int32[time], or [batch, time].
      frequencies: float32[pairs], or [batch, pairs].
      amplitude: what cosines and sines are multiplied by, see `RopeConfig.amplitude`.
      interleaved: whether x has channels that are rotated against each other side by side; the
        result has them `pairs` apart.
    """
    angle = positions.astype(jnp.float32)[..., None] * frequencies[..., None, :]
    cos, sin = (amplitude * of(angle)[..., None, :] for of in (jnp.cos, jnp.sin))
    turning = 2 * frequencies.shape[-1]
    wide = x[..., :turning].astype(jnp.float32)
    first, second = (
        (wide[..., 0::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
    )
    rotated = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    rotated = jax.lax.convert_element_type(rotated, x.dtype)
    return (
        jnp.concatenate((rotated, x[..., turning:]), axis=-1) if turning < x.shape[-1] else rotated
    )
