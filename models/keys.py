"""What a config says that no architecture reads: harmless, or a reason not to load.

A key that nobody reads may change the forward pass, and logits would be wrong without a word. So
an architecture reads a config through `Keys`, and `refuse_unread` lets pass what is left only if
it is known to change nothing: a name in `known_keys.toml`, or a value that is neutral under any
name.
"""

from __future__ import annotations

import tomllib
from collections import ChainMap, UserDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jentropy.errors import InputError, UnsupportedError

KNOWN: Mapping[str, Mapping[str, Any]] = tomllib.loads(
    Path(__file__).with_name("known_keys.toml").read_text()
)
MOST_LAYERS = 1 << 12  # more than any model has; each takes time before a weight is missed
MOST, MOST_SIZE = 1e30, 1 << 30  # of any number, and of a size: products of two are int64
_SHOWN = 4  # keys named in a message


def known(table: str) -> frozenset[str]:
    """All words of a table of `known_keys.toml`."""
    return frozenset(" ".join(KNOWN[table].values()).split())


_ENDS, _FACTORS, _SCALES = tuple(known("ends")), known("factors"), known("scales")


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


def with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, with values for keys that are missing; what is read of it is read of `config`."""
    maps: Any = (config, defaults)
    return ChainMap(*maps)


def _wrong(key: str, expected: str, value: Any) -> InputError:
    return InputError(f"config.json: key {key!r}", expected=expected, found=f"{value!r:.60}")


def require(config: Mapping[str, Any], key: str, kind: type = int, default: Any = None) -> Any:
    """The value of a key as `kind`: a positive integer or a finite number.

    Args:
      default: what a key that is missing or null stands for; None: it must be there.
    """
    value = default if config.get(key) is None else config[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_number = is_number and abs(value) <= MOST  # which neither inf nor nan is
    if not (is_number and (kind is float or 0 < value == int(value) <= MOST_SIZE)):
        expected = f"a positive integer up to {MOST_SIZE}" if kind is int else "a number"
        raise _wrong(key, expected, value)
    return kind(value)


def numbers(config: Mapping[str, Any], key: str, default: None = None) -> tuple[float, ...]:
    """The value of a key that is a list of positive numbers, which must be there."""
    values = config.get(key) or default
    if isinstance(values, list) and all(type(v) in (int, float) and 0 < v < MOST for v in values):
        return tuple(map(float, values))
    raise _wrong(key, "a list of positive numbers", values)


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """The value of a key that is true or false; missing or null is `default`."""
    value = default if config.get(key) is None else config[key]
    if value not in (0, 1):
        raise _wrong(key, "true or false", value)
    return bool(value)


def count(config: Mapping[str, Any], key: str, default: int = 0) -> int:
    """The value of a key that is a number of things, which may be none."""
    return require(config, key, int, default or None) if config.get(key, default) else 0


def layer_count(config: Mapping[str, Any]) -> int:
    """The number of layers."""
    layers = require(config, "num_hidden_layers")
    if layers > MOST_LAYERS:
        raise _wrong("num_hidden_layers", f"at most {MOST_LAYERS}", layers)
    return layers


def token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The token ids of a key: one, a list, or none, which -1 stands for too (Llama 1)."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value in (None, -1) else [value]
    if not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise _wrong(key, "token ids", value)
    return tuple(ids)


def is_neutral(key: str, value: Any) -> bool:
    """Whether a value stands for "not used": null, false, 0, nothing in it, or a factor of 1."""
    if key in _SCALES:
        return value is None
    if not isinstance(value, int | float):
        return _is_empty(value)
    is_one = value == 1 and value is not True
    return value == 0 or (is_one and not _FACTORS.isdisjoint(key.split("_")))


def _is_empty(value: Any) -> bool:
    inside = isinstance(value, Mapping)
    return all(map(_is_empty, value.values())) if inside else value in (None, "", [])


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
        if not (key in read or key in harmless or key.endswith(_ENDS) or is_neutral(key, value))
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
