"""`load`: a compressed checkpoint as a pytree of tensors that are still compressed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers import trees
from jentropy.containers.tensor import CompressedTensor, first_twice
from jentropy.errors import InputError

from . import structure
from .archived import Archive
from .index import Entry
from .store import Store


def load(path: str | Path, sharding: Any = None) -> Any:
    """Opens a compressed checkpoint without reading or decoding a weight.

    Args:
      path: a compressed checkpoint.
      sharding: where `decompress` will put the tensors: a `jax.sharding.Sharding` for all of them,
        or a pytree of shardings, `jax.ShapeDtypeStruct`s or None for the default, each of which
        stands for all that is below its place.

    Returns:
      A pytree of `CompressedTensor`: the one that was saved, or a dict by name of the weights of a
      compressed checkpoint directory.

    Raises:
      InputError: not a compressed checkpoint, or one with a damaged index; a sharding that does
        not fit a tensor, by name. Damaged payloads are found when they are decoded.
    """
    store = Store(Path(path))
    if store.index.files:
        entries = [item for array in Archive(store).arrays() for item in array.entries.items()]
        if (twice := first_twice(name for name, _ in entries)) is not None:
            raise InputError("two arrays have this name", file=store.path, tensor=twice)
        tree: Any = {name: _packed(store, entry) for name, entry in entries}
    else:
        packed = [_packed(store, entry) for entry in store.index.tensors]
        tree = structure.rebuild(store.index.tree, packed, store.array_path("index"))
    return tree if sharding is None else trees.with_sharding(tree, sharding)


def _packed(store: Store, entry: Entry) -> CompressedTensor:
    pieces: list[np.ndarray] = []
    for _, group in itertools.groupby(entry.chunks, key=lambda ref: ref.bundle):
        refs = list(group)
        adjacent = all(a.offset + a.chunk.bytes == b.offset for a, b in itertools.pairwise(refs))
        parts = [store.payload(ref) for ref in refs]
        if adjacent:
            whole = replace(refs[0].chunk, bytes=sum(ref.chunk.bytes for ref in refs))
            parts = [store.payload(replace(refs[0], chunk=whole))]
        pieces += parts
    return CompressedTensor(payload=tuple(pieces), header=entry.header)
