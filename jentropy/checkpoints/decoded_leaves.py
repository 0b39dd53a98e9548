"""The leaves of a pytree, decoded into one file of a stage, from where they are saved.

They lie in the order of the index, each from a multiple of 64 bytes on. What is there already is
held to the hashes of the index, so that no journal is needed: leaves stay up to the first that is
not sound.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers import trees
from jentropy.containers.tensor import TensorHeader, dtype_named

from . import durable
from .decoding import read_chunks
from .mapping import mapped
from .progress import Progress, expect
from .restoring import same_chunks
from .staging import expect_space
from .store import Store

ALIGNMENT = 64


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def decoded(store: Store, file: Path, progress: Progress | None) -> list[Any]:
    """The leaves of a checkpoint's tree, in order; NumPy arrays are maps of a file.

    Args:
      file: that has them, or some of them; the rest is added.
      progress: called with the bytes done since the last call.

    Raises:
      InputError: a damaged checkpoint.
      DestinationError: not enough space for the leaves and what is made of them.
    """
    entries = store.index.tensors
    sizes = [entry.header.raw_bytes for entry in entries]
    begins = [0, *itertools.accumulate(map(_padded, sizes))]
    there = mapped(file) if file.is_file() and not file.is_symlink() else np.zeros(0, np.uint8)
    sound = 0
    while sound < len(entries) and _is_sound(entries[sound].header, there, begins[sound]):
        sound += 1
    expect(progress, sum(sizes), sum(sizes[:sound]))
    expect_space(file, begins[-1] - begins[sound] + sum(sizes))
    durable.truncate(file, min(begins[sound], there.size))
    with durable.opened(file, keep=True) as stream:
        for n, chunks in enumerate(read_chunks(store, entries[sound:], progress), sound):
            stream.writelines(codes.data for codes in chunks)
            stream.write(bytes(begins[n + 1] - begins[n] - sizes[n]))
        durable.close(stream)
    data = mapped(file)
    return [
        trees.as_it_was(_array(entry.header, data[begin : begin + size]), entry.header)
        for entry, begin, size in zip(entries, begins, sizes, strict=False)
    ]


def _is_sound(header: TensorHeader, data: np.ndarray, begin: int) -> bool:
    part = data[begin : begin + _padded(header.raw_bytes)]
    whole = part.size == _padded(header.raw_bytes)
    return whole and same_chunks(header, part[: header.raw_bytes]) == len(header.chunks)


def _array(header: TensorHeader, data: np.ndarray) -> np.ndarray:
    return data.view(dtype_named(header.dtype)).reshape(header.shape)
