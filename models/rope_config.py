"""What rotary positions are built from, read from a Hugging Face `config.json`.

transformers 5 writes `rope_parameters`; most published models carry `rope_theta` and
`rope_scaling`. Where two places say different things, so would two readers: that is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jentropy.errors import InputError, UnsupportedError

from .harmless import HARMLESS_ROPE
from .keys import Keys, agreed, refuse_unread, require

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


def rope_config(config: Mapping[str, Any]) -> RopeConfig:
    """Reads `rope_parameters`, or `rope_theta` and `rope_scaling`."""
    told: dict[str, Any] = {}
    for place in ("rope_parameters", "rope_scaling"):
        inner = config.get(place) or {}
        if not isinstance(inner, Mapping):
            raise InputError(f"config.json: {place}", expected="an object", found=inner)
        for key, value in inner.items():
            key = "rope_type" if key == "type" else key
            told[key] = agreed(key, told.get(key), value)
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        told[key] = agreed(key, told.get(key), config.get(key))
    scaling = Keys(told)
    kind = str(scaling.get("rope_type") or "default")
    values: dict[str, Any] = {"theta": require(scaling, "rope_theta", float, 10000.0)}
    if kind in ("linear", "llama3"):
        values["factor"] = require(scaling, "factor", float)
    if kind == "llama3":
        values["low_freq_factor"] = require(scaling, "low_freq_factor", float)
        values["high_freq_factor"] = require(scaling, "high_freq_factor", float)
        values["original_context"] = require(scaling, "original_max_position_embeddings")
    rope = RopeConfig(kind=kind, **values)
    partial = require(scaling, "partial_rotary_factor", float, 1.0)
    if partial != 1.0:
        raise UnsupportedError("config.json: partial_rotary_factor", expected="1", found=partial)
    refuse_unread(told, scaling.read, HARMLESS_ROPE, f"config.json: rope parameters of {kind!r}")
    return rope
