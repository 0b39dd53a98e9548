"""Ropes as configs say them.

transformers 5 writes `rope_parameters`; most published models carry `rope_theta` and
`rope_scaling`. Where two places say different things, so would two readers: that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jentropy.errors import InputError, UnsupportedError

from .keys import Keys, flag, known, numbers, refuse_unread, require
from .rope import RopeConfig

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
_LONGROPE = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "attention_factor": "attention_factor",
    "short_factor": "short_factors",
    "long_factor": "long_factors",
}
KEYS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": _LLAMA3,
    "yarn": _YARN,
    "longrope": _LONGROPE,
}
# How fields are read that are no numbers with a fraction.
_READ: Mapping[str, Callable[..., Any]] = {
    "original_context": partial(require, kind=int),
    "truncate": flag,
    "short_factors": numbers,
    "long_factors": numbers,
}
# What stands for keys that are missing; all others must be there.
_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True} | dict.fromkeys(
    ("attention_factor", "mscale", "mscale_all_dim"), 0.0
)
_BESIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def rope_config(
    config: Mapping[str, Any],
    *,
    theta: float = 10000.0,
    partly: bool = False,
    names: Mapping[str, str] | None = None,
    rotated: float = 1.0,
) -> RopeConfig:
    """Reads `rope_parameters`, or `rope_theta` and `rope_scaling`.

    Args:
      theta: what `rope_theta` is where it is missing.
      partly: whether the architecture knows a `partial_rotary_factor`.
      names: the kind of rope by other names for it.
      rotated: what that is where it is missing.
    """
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
    kind = (names or {}).get(kind, kind)
    defaults: dict[str, Any] = dict(_DEFAULTS)
    if kind in ("yarn", "longrope"):
        length = require(config, "max_position_embeddings", int, 2048)
        original = "original_max_position_embeddings"
        defaults[original] = length
        defaults["factor"] = length / require(told, original) if told.get(original) else None
    values = {
        field: _READ.get(field, partial(require, kind=float))(told, key, default=defaults.get(key))
        for key, field in KEYS.get(kind, {}).items()
    }
    if kind == "dynamic":
        values["original_context"] = require(config, "max_position_embeddings", int, 2048)
    rotated = require(told, "partial_rotary_factor", float, rotated)
    if rotated != 1.0 and not partly:
        raise UnsupportedError("config.json: partial_rotary_factor", expected="1", found=rotated)
    theta = require(told, "rope_theta", float, theta)
    rope = RopeConfig(kind=kind, theta=theta, rotated=rotated, **values)
    where = f"config.json: rope parameters of {kind!r}"
    refuse_unread(told.data, told.read, known("rope"), where)
    return rope


def ropes_by_kind(
    config: Mapping[str, Any], *, theta: float, local: float | None = None
) -> tuple[RopeConfig, RopeConfig]:
    """Reads the rope of layers that see everything, and of those that slide.

    OLMo 3 wrote one `rope_theta` for both before it wrote `rope_parameters`. transformers 5.24
    takes it for layers that see everything, and 500000 for all others; published ones have that.

    Args:
      theta: what `rope_theta` is where it is missing.
      local: the same of `rope_local_base_freq`, for layers that slide; None: `rope_theta` is.
    """
    told, kinds = config.get("rope_parameters"), ("full_attention", "sliding_attention")
    if not told:
        full = rope_config(config, theta=theta)
        base = (
            full.theta if local is None else require(config, "rope_local_base_freq", float, local)
        )
        return full, RopeConfig(theta=base)
    if not isinstance(told, Mapping) or set(told) - set(kinds):
        expected = f"an object of {' and '.join(kinds)}"
        raise InputError("config.json: rope_parameters", expected=expected, found=f"{told!r:.60}")
    beside = {"max_position_embeddings": config.get("max_position_embeddings")}
    full, sliding = (
        rope_config({**beside, "rope_parameters": told.get(kind)}, theta=base)
        for kind, base in zip(kinds, (theta, local or theta), strict=True)
    )
    return full, sliding
