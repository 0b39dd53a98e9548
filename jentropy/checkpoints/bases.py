"""Checkpoints by whose tensors those of another are told.

A base is named by the digest of the tensors that are needed of it: any compressed checkpoint that
holds the same codes will do, whatever they cost there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jentropy.containers.tensor import checksum
from jentropy.errors import InputError

from .decoding import coded_chunk, decoded_codes
from .entries import Entry, Index
from .mirrors import located
from .store import Store

Bases = str | Path | Sequence[str | Path] | None


def digest_of(entries: Iterable[Entry]) -> int:
    """XXH3-64 of what tensors hold: their shapes, dtypes and hashes of codes."""
    told = [
        [list(e.shape), e.dtype, [f"{chunk.codes_hash:016x}" for chunk in e.header.chunks]]
        for e in entries
    ]
    text = json.dumps(told, separators=(",", ":")).encode()
    return checksum(np.frombuffer(text, np.uint8))


def needed(index: Index, base: Index) -> list[Entry]:
    """The base's tensors that an index needs, in the order of its own.

    Raises:
      InputError: the base has not so many.
    """
    numbers = [entry.base for entry in index.tensors if entry.base is not None]
    if max(numbers, default=-1) >= len(base.tensors):
        raise InputError(
            "base", expected=f"more than {max(numbers)} tensors", found=len(base.tensors)
        )
    return [base.tensors[number] for number in numbers]


def paths(bases: Bases) -> tuple[Path, ...]:
    """Bases as they are given: one, or the nearest first."""
    if bases is None:
        return ()
    each = (bases,) if isinstance(bases, str | Path) else bases
    return tuple(map(located, each))


def with_bases(path: Path, bases: Bases, damage: list[InputError] | None = None) -> Store:
    """A compressed checkpoint, with its base and that one's.

    Args:
      bases: the nearest first. Those of a checkpoint that needs none are not looked at.

    Raises:
      InputError: a base whose tensors are not those that are needed.
    """
    store, given = Store(path, damage), paths(bases)
    expected = store.index.base
    if expected is None or not given:
        return store
    store.base = with_bases(given[0], given[1:])
    if (found := digest_of(needed(store.index, store.base.index))) != expected:
        raise InputError(
            f"base {given[0]}",
            file=path,
            expected=f"tensors of digest {expected:016x}",
            found=f"{found:016x}",
        )
    return store


def expect_base(store: Store) -> None:
    """Raises InputError if a checkpoint needs a base that was not given."""
    if store.index.base is not None and store.base is None:
        raise store.no_base()


@dataclass(frozen=True)
class Base:
    """A checkpoint by whose tensors others are told as they are written."""

    store: Store

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Of its tensors, by name; the first of several of one name."""
        tensors = list(enumerate(self.store.index.tensors))
        return {entry.name: number for number, entry in reversed(tensors)}

    def number_of(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> int | None:
        """The number of the tensor of this name, if it has this shape and dtype."""
        number = self.numbers.get(name)
        if number is None:
            return None
        entry = self.store.index.tensors[number]
        return number if (entry.shape, entry.dtype) == (tuple(shape), dtype.name) else None

    def codes(self, number: int, start: int, size: int) -> np.ndarray:
        """Codes of a chunk of a tensor, which begins at `start`."""
        entry = self.store.index.tensors[number]
        chunk = coded_chunk(self.store, entry, start // entry.header.chunk_weights)
        return decoded_codes(chunk)[:size]
