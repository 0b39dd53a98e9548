"""Experts as configs of DeepSeek's kind say them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .expert_config import ExpertsConfig
from .keys import count, flag, layer_count, require


def routed_from(config: Mapping[str, Any], first: int) -> tuple[bool, ...]:
    """Of every layer whether it has experts: all from `first_k_dense_replace` on.

    Args:
      first: what that is where it is missing.
    """
    first = count(config, "first_k_dense_replace", first)
    return tuple(n >= first for n in range(layer_count(config)))


def experts_in_groups(
    config: Mapping[str, Any], *, inner: int, experts: int, groups: int, kept: int, scale: float
) -> ExpertsConfig:
    """Experts that are scored by sigmoids and chosen in groups, and a shared one.

    Args:
      inner, experts, groups, kept, scale: what they are where the config does not say.
    """
    inner = require(config, "moe_intermediate_size", int, inner)
    return ExpertsConfig(
        count=require(config, "n_routed_experts", int, experts),
        per_token=require(config, "num_experts_per_tok", int, 8),
        intermediate_size=inner,
        scoring="sigmoid",
        correction=True,
        groups=require(config, "n_group", int, groups),
        kept_groups=require(config, "topk_group", int, kept),
        best_of_group=2,
        normalized=flag(config, "norm_topk_prob", True),
        scale=require(config, "routed_scaling_factor", float, scale),
        logits_in_float32=True,
        shared_size=inner * count(config, "n_shared_experts", 1),
    )
