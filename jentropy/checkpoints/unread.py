"""Entries of an index that are checked all at once, a column at a time, and read when asked for.

What is not as it should be is left to the reading of one entry after another, which says where.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jentropy.codecs import stored
from jentropy.containers.tensor import MAX_SIZE, chunk_length, is_shape

from .entries import Entry

HASHES = re.compile("[0-9a-f]*")
DIGITS = 16  # of a hash
STORED_WIDTH, CODED_WIDTH = 4, 5  # columns of a chunk: of its hashes what is stored has one
BASE64 = re.compile("([0-9A-Za-z+/]{4})*([0-9A-Za-z+/]{2}==|[0-9A-Za-z+/]{3}=)?")
# Types of values that may be left out, and what stands for one that is.
OPTIONAL: dict[str, tuple[set[type], Any]] = {
    "head": ({str}, ""),
    "joint_entropy_bits": ({int, float, type(None)}, None),
    "jax": ({bool}, False),
    "scalar": ({bool}, False),
    "key": ({str}, ""),
}


class UnreadEntry(Entry):
    """An entry whose JSON has been checked.

    Args:
      told: its JSON.
      read: makes the entry of it.
    """

    __slots__ = ("_entry", "_read", "_told")
    _entry: Entry | None
    _read: Callable[[Any], Entry]
    _told: Mapping[str, Any]

    def __init__(self, told: Mapping[str, Any], read: Callable[[Any], Entry]):
        set_slot = object.__setattr__
        set_slot(self, "name", told["name"])
        set_slot(self, "_told", told)
        set_slot(self, "_read", read)
        set_slot(self, "_entry", None)

    def _whole(self) -> Entry:
        entry = self._entry
        if entry is None:
            entry = self._read(self._told)
            object.__setattr__(self, "_entry", entry)
        return entry

    @property
    def header(self) -> Any:
        return self._whole().header

    @property
    def places(self) -> Any:
        return self._whole().places

    @property
    def base(self) -> None:  # those that have one are read at once
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._told["shape"])

    @property
    def dtype(self) -> str:
        return self._told["dtype"]


class UnreadEntries(tuple):
    """Entries that are sound but for where their chunks lie.

    Attributes:
      ends: int64[bundles]: behind the last byte that a chunk has in each.
    """

    ends: np.ndarray


def unread(
    told: Any,
    read: Callable[[Any], Entry],
    check_kind: Callable[[str, str, str], Any],
) -> UnreadEntries | None:
    """The entries of a list's JSON, if all of it is sound.

    Args:
      read: makes the entry of one.
      check_kind: raises an InputError unless a dtype, a format and a codec are known and go
        together.

    Returns:
      None if anything is not as it should be.
    """
    if type(told) is not list or not told:
        return None
    try:
        ends = _ends(told, check_kind)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    if ends is None:
        return None
    entries = UnreadEntries([UnreadEntry(one, read) for one in told])
    entries.ends = ends
    return entries


def _types(values: Sequence[Any]) -> set[type]:
    return set(map(type, values))


def _ends(told: list[Any], check_kind: Callable[[str, str, str], Any]) -> np.ndarray | None:
    if _types(told) != {dict} or _types([one["name"] for one in told]) != {str}:
        return None
    keys = set(itertools.chain.from_iterable(set(map(tuple, told))))
    if keys & {"delta", "base"}:
        return None
    kinds = [(one["dtype"], one["format"], one["codec"]) for one in told]
    for kind in set(kinds):
        if _types(kind) != {str}:
            return None
        check_kind(*kind)
    if not _types([one["entropy_bits"] for one in told]) <= {int, float}:
        return None
    for key, (types, default) in OPTIONAL.items():
        if key in keys and not _types([one.get(key, default) for one in told]) <= types:
            return None
    if "head" in keys and not all(BASE64.fullmatch(one.get("head", "")) for one in told):
        return None
    return _ends_of_chunks(told, [kind[2] == stored.NAME for kind in kinds])


def _ends_of_chunks(told: list[Any], is_stored: list[bool]) -> np.ndarray | None:
    shapes = [tuple(one["shape"]) for one in told]
    if _types([one["shape"] for one in told]) != {list}:
        return None
    counts = {shape: _chunks(shape) for shape in set(shapes)}
    groups = [one["chunks"] for one in told]
    if _types(groups) != {list} or [counts[shape] for shape in shapes] != list(map(len, groups)):
        return None
    columns: list[list[Any]] = [[], [], []]  # bundles, offsets and bytes of all chunks
    for width in (STORED_WIDTH, CODED_WIDTH):
        of_width = zip(groups, is_stored, strict=True)
        parts = (group for group, one in of_width if one == (width == STORED_WIDTH))
        rows = list(itertools.chain.from_iterable(parts))
        if not rows:
            continue
        if _types(rows) != {list} or set(map(len, rows)) != {width}:
            return None
        flat = list(itertools.chain.from_iterable(rows))
        for number, column in enumerate(columns):
            column += flat[number::width]
        hashes = itertools.chain.from_iterable(flat[n::width] for n in range(len(columns), width))
        if not _are_hashes(list(hashes)):
            return None
    if not columns[0]:
        return np.zeros(0, np.int64)
    if any(_types(column) != {int} for column in columns):
        return None
    bundles, offsets, sizes = (np.array(column, np.int64) for column in columns)
    if min(map(np.min, (bundles, offsets, sizes))) < 0 or bundles.max() >= bundles.size:
        return None
    if max(offsets.max(), sizes.max()) > MAX_SIZE:
        return None
    ends = np.zeros(int(bundles.max()) + 1, np.int64)
    np.maximum.at(ends, bundles, offsets + sizes)
    return ends


def _are_hashes(values: list[Any]) -> bool:
    return set(map(len, values)) == {DIGITS} and HASHES.fullmatch("".join(values)) is not None


def _chunks(shape: tuple[Any, ...]) -> int:
    """How many chunks a tensor has; -1 of what is no shape."""
    if not _types(shape) <= {int} or min(shape, default=0) < 0 or not is_shape(shape):
        return -1
    return -(-math.prod(shape) // chunk_length(shape))
