"""What a config says that no architecture reads: harmless, or a reason not to load.

A key that nobody reads may change the forward pass, and logits would be wrong without a word. So
an architecture reads a config through `Keys`, and `refuse_unread` lets pass what is left only if
it is known to change nothing: a name in `harmless`, or a value that is neutral under any name.
"""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Collection, Mapping
from typing import Any

from jentropy.errors import InputError, UnsupportedError

from .harmless import FACTORS, HARMLESS_ENDS, NEVER_NEUTRAL

_SHOWN = 4  # keys named in a message


class Keys(UserDict[str, Any]):
    """A JSON object that knows which of its keys were asked for.

    Attributes:
      read: those keys that it has.
    """

    def __init__(self, content: Mapping[str, Any]):
        super().__init__(content)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


def require(config: Mapping[str, Any], key: str, kind: type = int, default: Any = None) -> Any:
    """The value of a key as `kind`: a positive integer or a finite number.

    Args:
      default: what a key that is missing or null stands for; None: it must be there.
    """
    value = config.get(key)
    value = default if value is None else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and (kind is float or (value == int(value) > 0))):
        expected = "a positive integer" if kind is int else "a number"
        raise InputError(f"config.json: key {key!r}", expected=expected, found=f"{value!r:.60}")
    return kind(value)


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """The value of a key that is true or false; missing or null is `default`."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool) and value not in (0, 1):
        raise InputError(
            f"config.json: key {key!r}", expected="true or false", found=f"{value!r:.60}"
        )
    return bool(value)


def token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The token ids of a key: one, a list, or none, which -1 stands for too (Llama 1)."""
    value = config.get(key)
    value = None if value == -1 else value
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < 1 << 31:
            raise InputError(
                f"config.json: key {key!r}", expected="token ids", found=f"{value!r:.60}"
            )
    return tuple(ids)


def agreed(name: str, *values: Any) -> Any:
    """What every place that has a value says of a key; None if none has one."""
    told = [value for value in values if value is not None]
    for value in told:
        if value != told[0]:
            raise InputError(
                f"config.json: {name}", expected=f"{told[0]!r:.60} in all places", found=value
            )
    return told[0] if told else None


def is_neutral(key: str, value: Any) -> bool:
    """Whether a value stands for "not used": null, false, 0, nothing in it, or a factor of 1."""
    if key in NEVER_NEUTRAL:
        return value is None
    if isinstance(value, int | float):
        is_one = value == 1 and value is not True
        return value == 0 or (is_one and any(word in FACTORS for word in key.split("_")))
    return _is_empty(value)


def _is_empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_empty(inner) for inner in value.values())
    return value is None or (isinstance(value, str | list) and not value)


def refuse_unread(
    content: Mapping[str, Any],
    read: Collection[str],
    harmless: Collection[str],
    where: str,
    file: object = None,
) -> None:
    """Raises UnsupportedError, with their names, if keys are neither read nor harmless.

    Args:
      content: a JSON object of a config.
      where: its name in messages.
    """
    left = [
        f"{key} = {value!r:.60}"
        for key, value in content.items()
        if not (
            key in read or key in harmless or key.endswith(HARMLESS_ENDS) or is_neutral(key, value)
        )
    ]
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise UnsupportedError(
            where,
            file=file,
            expected="keys known to this architecture, or to change nothing",
            found=", ".join(left[:_SHOWN]) + more,
            hint="the forward pass may be another; if it is not, take the key out of the config",
        )
