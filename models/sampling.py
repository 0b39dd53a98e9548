"""The next token from logits: what transformers' processors of logits make of them, and a draw.

In transformers' order: a penalty for tokens that came before, temperature, then the k likeliest
tokens, the likeliest that have a share p together, and those not far behind the likeliest. What is
not asked for is no part of the program; what is asked for are numbers that it takes, so that other
ones compile nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from jentropy.errors import InputError

GENERATOR = "threefry2x32"  # one sequence's numbers are the same in any batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen, as transformers defines it.

    Raises:
      InputError: a number out of its range.

    Example:
      >>> Sampling(temperature=0.7, top_p=0.9).numbers()
      {'temperature': 0.7, 'top_p': 0.9}
      >>> Sampling(top_k=20).numbers()  # of the likeliest token it keeps one
      {}
    """

    temperature: float = 0.0  # divides logits; 0 takes the likeliest token
    top_k: int = 0  # so many of the likeliest tokens; 0: all
    top_p: float = 1.0  # the fewest of the likeliest tokens that have this share together
    min_p: float = 0.0  # those at least this share as likely as the likeliest
    repetition_penalty: float = 1.0  # divides logits of tokens that came before, or multiplies

    def __post_init__(self) -> None:
        for what, least, most in _RANGES:
            value = getattr(self, what)
            if not (least <= value <= most and value < math.inf):
                expected = f"{least} or more" if most == math.inf else f"{least} to {most}"
                raise InputError(what, expected=expected, found=value)
        if self.repetition_penalty == 0:
            raise InputError("repetition_penalty", expected="more than 0", found=0)

    def numbers(self) -> dict[str, float]:
        """Those that change something, by name."""
        draws = self.temperature > 0
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
            and (draws or field.name == "repetition_penalty")
        }


_RANGES = (
    ("temperature", 0, math.inf),
    ("top_k", 0, (1 << 31) - 1),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("repetition_penalty", 0, math.inf),
)


def sampling_of(config: Mapping[str, Any], **told: Any) -> Sampling:
    """What `generation_config.json` says, where nothing else is told.

    Args:
      config: its content. Of drawing it says something only with a true `do_sample`, as for
        transformers, where temperature and top_k that it lacks are 1 and 50.
      **told: fields of `Sampling`; None: not told.

    Returns:
      A `Sampling`.

    Raises:
      InputError: something that is no number, or out of its range.

    Example:
      >>> sampling_of({"do_sample": True, "top_p": 0.8, "top_k": 20}, temperature=0.5)
      Sampling(temperature=0.5, top_k=20, top_p=0.8, min_p=0.0, repetition_penalty=1.0)
    """
    names = [field.name for field in fields(Sampling)]
    draws = config.get("do_sample") is True
    base: dict[str, Any] = {"temperature": 1.0, "top_k": 50} if draws else {}
    read = names if draws else ["repetition_penalty"]
    base |= {name: config[name] for name in read if config.get(name) is not None}
    for name, value in base.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"generation_config.json: {name}", expected="a number", found=value)
    return Sampling(
        **{**base, **{name: value for name, value in told.items() if value is not None}}
    )


def processed(
    logits: Float[Array, "batch vocabulary"],
    numbers: Mapping[str, Any],
    came: Bool[Array, "batch vocabulary"] | None = None,
) -> Float[Array, "batch vocabulary"]:
    """Logits to draw from.

    Args:
      numbers: of `Sampling`, or arrays of them.
      came: which tokens came before; with a repetition penalty.
    """
    if "repetition_penalty" in numbers and came is not None:
        penalty = numbers["repetition_penalty"]
        logits = jnp.where(came, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    if "temperature" in numbers:
        logits = logits / numbers["temperature"]
    if "top_k" in numbers or "top_p" in numbers:
        ordered = -jnp.sort(-logits, axis=-1)
        least = jnp.full_like(ordered[:, :1], -jnp.inf)
        if "top_k" in numbers:
            last = jnp.minimum(numbers["top_k"], logits.shape[-1]) - 1
            least = jax.lax.dynamic_slice_in_dim(ordered, last, 1, axis=1)
        if "top_p" in numbers:
            kept = jnp.where(ordered >= least, ordered, -jnp.inf)
            shares = jax.nn.softmax(kept, axis=-1)
            before = jnp.cumsum(shares, axis=-1) - shares  # of those that are likelier
            some = (before < numbers["top_p"]).at[:, 0].set(True)
            least = jnp.min(
                jnp.where(some & (ordered >= least), ordered, jnp.inf), -1, keepdims=True
            )
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if "min_p" in numbers:
        least = logits.max(-1, keepdims=True) + jnp.log(numbers["min_p"])
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def draw(
    logits: Float[Array, "batch vocabulary"],
    numbers: Mapping[str, Any],
    seeds: UInt[Array, " batch"],
    positions: Int[Array, " batch"],
    came: Bool[Array, "batch vocabulary"] | None = None,
) -> Int[Array, " batch"]:
    """The next tokens, which depend on a sequence's own seed and position only."""
    logits = processed(logits, numbers, came)
    if "temperature" not in numbers:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def one(seed: jax.Array, position: jax.Array, logits: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed, impl=GENERATOR), position)
        return jax.random.categorical(key, logits)

    return jax.vmap(one)(seeds, positions, logits).astype(jnp.int32)
