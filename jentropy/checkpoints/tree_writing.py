"""A compressed pytree written as a checkpoint of Orbax, whatever its size.

Orbax wants all of a tree at once, and holds it encoded. So it is given the smallest leaves as they
are and zeros, which take no memory, for the others. These are then written where the zeros lie, a
part at a time. What earlier work wrote is held to the hashes of the index.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash

from jentropy.containers import trees
from jentropy.containers.tensor import TensorHeader, dtype_named, first_twice
from jentropy.containers.trees import is_python
from jentropy.errors import InputError, UnsupportedError
from jentropy.release import RELEASE

from . import durable, mapping, orbax, structure
from .decoding import read_entries
from .entries import StoreEntry
from .orbax_source import read_orbax
from .progress import Progress, expect
from .restoring import sound_arrays, write_store
from .staging import OUT, expect_space
from .store import Store

GIVEN_BYTES = 1 << 26  # of leaves that Orbax gets as they are
MADE_OF = "made-of"  # in a stage: what the checkpoint of zeros in it was made of


def write(
    store: Store,
    stage: Path,
    target: Path,
    progress: Progress | None = None,
    without: Collection[int] = (),
) -> Path:
    """Writes the tree of a checkpoint into a folder of `staged`, or what is left of it.

    Args:
      target: what it will be, for messages.
      progress: called with the bytes done since the last call.
      without: numbers of tensors in whose places None stands.

    Returns:
      What was written.

    Raises:
      UnsupportedError: a tree that Orbax does not store, or would not give back.
      InputError: a damaged checkpoint.
      DestinationError: not enough space.
    """
    entries = store.index.tensors
    headers = {n: entry.header for n, entry in enumerate(entries) if n not in without}
    sizes = {entries[n].name: header.size for n, header in headers.items()}
    orbax.refuse_empty(target, sizes | {name: 1 for name, _ in structure.others(store.index.tree)})
    zeros = mapping.hole(max((header.raw_bytes for header in headers.values()), default=0))
    leaves = {n: _leaf(header, zeros) for n, header in headers.items()}
    prefixes = _prefixes(store, leaves, target)
    given, total = _given(headers, prefixes), sum(header.raw_bytes for header in headers.values())
    made, of, digest = stage / OUT, stage / MADE_OF, _digest(store, without)
    item = None
    if made.is_dir() and of.is_file() and of.read_bytes() == digest:
        with suppress(InputError):
            item = _item(made, prefixes)
    if item is not None:
        sound = sound_arrays(store, item, made / item.path)
        left = sum(headers[n].raw_bytes for n, prefix in prefixes.items() if prefix not in sound)
        expect_space(target, left)
        expect(progress, total, total - left)
    else:
        of.unlink(missing_ok=True)
        expect_space(target, total)
        expect(progress, total)
        values = read_entries(store, (entries[n] for n in given), progress)
        small = {n: trees.as_it_was(v, headers[n]) for n, v in zip(given, values, strict=True)}
        orbax.write_tree(stage, target, _tree(store, leaves | small), store.index.beside)
        del small
        durable.write(of, digest)
        item, sound = _item(made, prefixes), {prefixes[n] for n in given if n in prefixes}
    write_store(store, item, made / item.path, progress, sound)
    return made


def _digest(store: Store, without: Collection[int]) -> bytes:
    """Of the release, and of what is written."""
    told = xxhash.xxh3_128(f"{RELEASE} {sorted(without)}".encode())
    told.update(store.array("index").data)
    return told.hexdigest().encode()


def _leaf(header: TensorHeader, zeros: np.ndarray) -> Any:
    values = zeros[: header.raw_bytes].view(dtype_named(header.dtype)).reshape(header.shape)
    return trees.as_it_was(values, header)


def _tree(store: Store, leaves: Mapping[int, Any]) -> Any:
    return structure.fill(
        store.index.tree, [leaves.get(n) for n in range(len(store.index.tensors))]
    )


def _prefixes(store: Store, leaves: Mapping[int, Any], target: Path) -> dict[int, str]:
    """Prefixes of the keys under which Orbax keeps arrays, by their numbers.

    Raises:
      UnsupportedError: two leaves that it would keep under one.
    """
    numbers = {id(leaf): n for n, leaf in leaves.items() if not is_python(leaf)}
    found = jax.tree_util.tree_flatten_with_path(_tree(store, leaves))[0]
    names = [(trees.leaf_name(path), leaf) for path, leaf in found]
    if (twice := first_twice(name for name, _ in names)) is not None:
        raise UnsupportedError(
            "Orbax would store two leaves as one",
            file=target,
            tensor=twice,
            hint="jentropy.load and jentropy.decompress give them back in Python",
        )
    return {
        numbers[id(leaf)]: f"{name}/" if name else "" for name, leaf in names if id(leaf) in numbers
    }


def _given(headers: Mapping[int, TensorHeader], prefixes: Mapping[int, str]) -> list[int]:
    """Numbers of the leaves that Orbax gets as they are: what is no array, and the smallest."""
    given, size = [], 0
    for n in sorted(headers, key=lambda n: (n in prefixes, headers[n].raw_bytes)):
        size += headers[n].raw_bytes
        if n in prefixes and size > GIVEN_BYTES:
            break
        given.append(n)
    return sorted(given)


def _item(made: Path, prefixes: Mapping[int, str]) -> StoreEntry:
    """The store that Orbax has written.

    Raises:
      InputError: an array is not where it should be.
    """
    (item,) = read_orbax(made).stores
    metadata = {array.prefix: array.metadata for array in item.arrays}
    for prefix in prefixes.values():
        if prefix not in metadata:
            name = prefix.removesuffix("/")
            raise InputError("array", file=made, tensor=name, expected="it", found="none")
    arrays = tuple((n, prefix, metadata[prefix]) for n, prefix in sorted(prefixes.items()))
    return StoreEntry(path=item.path, ocdbt=item.ocdbt, arrays=arrays)
