"""What a config declares of a quantisation, of the types that it has to have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jentropy.checkpoints.contents import Contents, Shape
from jentropy.errors import InputError
from jentropy.formats import WHOLE

LARGEST = 1 << 40  # block size
Declared = Mapping[str, Any]


def mapping(value: Any) -> Declared:
    """An object, or an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def is_size(value: Any) -> bool:
    """Whether a value is the size of a block."""
    return type(value) is int and 0 < value < LARGEST


def integer(config: Declared, key: str, contents: Contents, default: Any = None) -> int:
    """A positive integer of the declared quantisation.

    Raises:
      InputError: it is missing or no such integer.
    """
    value = config.get(key)
    value = default if value is None else value
    if not is_size(value):
        raise _error(contents, key, "an integer above 0", value)
    return value


def group_block(
    config: Declared, contents: Contents, key: str = "group_size", default: Any = None
) -> Shape:
    """Weights of a row that share parameters: groups of `group_size`, or the row if that is -1."""
    if config.get(key, default) == -1:
        return (WHOLE,)
    return (integer(config, key, contents, default),)


def block_pair(value: Any, key: str, contents: Contents) -> Shape:
    """Two sizes of a block, rows first.

    Raises:
      InputError: it is no such pair.
    """
    if not isinstance(value, list) or len(value) != 2 or not all(map(is_size, value)):
        raise _error(contents, key, "two sizes", value)
    return tuple(value)


def compiled(pattern: str, key: str, contents: Contents) -> re.Pattern[str]:
    """A pattern of the config.

    Raises:
      InputError: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{contents.declared_in}: {key}: {error}", file=contents.source) from error


def _error(contents: Contents, key: str, expected: str, value: Any) -> InputError:
    return InputError(
        f"{contents.declared_in}: {key}",
        file=contents.source,
        expected=expected,
        found=f"{value!r:.40}",
    )
