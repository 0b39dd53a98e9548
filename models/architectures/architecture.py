"""The record of an architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jentropy.models.config import DecoderConfig
from jentropy.models.names import Rule

# Names of most checkpoints: those of the model's parameters behind a prefix.
PREFIX = "model."
NAMES = (
    Rule(name="lm_head.{rest}", paths=("lm_head.{rest}",)),
    Rule(name=f"{PREFIX}{{rest}}", paths=("{rest}",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How a model is read from a checkpoint.

    Attributes:
      config: reads `config.json`; what it returns says which layers there are.
      other_names: its `model_type`, and the class that is saved without an output projection.
      names: where weights go, by their names in the checkpoint.
    """

    config: Callable[[Mapping[str, Any]], DecoderConfig]
    other_names: tuple[str, ...]
    names: tuple[Rule, ...] = NAMES
