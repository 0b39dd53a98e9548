"""What is written, wherever it comes from: items become chunks in bundles and entries of an index.

What was done when work was killed stands in the journal of the `Writer` and is not done again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from jentropy.containers import coder
from jentropy.containers.chunks import coded_chunks
from jentropy.containers.tensor import Chunk, CompressedTensor, Description, is_compressed
from jentropy.schema import DIGEST, SIZE, optional, record, row

from .contents import StoredArray
from .entries import Entry
from .index import ENTRY
from .progress import Progress, expect
from .writer import Writer

JOURNAL_VERSION = 2
CHUNK = record(
    Chunk, {"weights": SIZE, "bytes": SIZE, "payload_hash": DIGEST, "codes_hash": DIGEST}
)
# Which item, place of its next chunk, that chunk, and with the last one the entry.
RECORD = row(SIZE, row(SIZE, SIZE), CHUNK, optional(ENTRY))

Placed = list[tuple[tuple[int, int], Chunk]]  # chunks of an item by their places
# Which item, what its header says but the chunks, and its next chunks with their payloads.
Coded = tuple[int, Description, list[tuple[Chunk, np.ndarray]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A tensor or a blob to write.

    Attributes:
      name: of its entry.
      array: what it holds; if that is compressed already, it is copied.
      draft: how it is coded: `coder.draft` with its options, or `coder.blob`.
      reads: whether reading the array takes memory: it is not mapped.
    """

    name: str
    array: StoredArray | CompressedTensor
    draft: Callable[..., coder.Draft] = coder.draft
    reads: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the original."""
        return math.prod(self.array.shape) * self.array.dtype.itemsize

    def make(self, skip: int) -> coder.Draft:
        """Its draft, less the chunks that are there."""
        assert isinstance(self.array, StoredArray)
        return self.draft(self.name, self.array.read(), skip=skip)


def write(
    writer: Writer, items: Sequence[Item], progress: Progress | None = None
) -> tuple[Entry, ...]:
    """Writes the chunks of items that are not there yet, in order.

    Args:
      progress: called with the bytes done since the last call.

    Returns:
      The items' entries.
    """
    placed: list[Placed] = [[] for _ in items]
    entries: list[Entry | None] = [None] * len(items)
    for number, place, chunk, entry in map(RECORD.read, writer.journal):
        placed[number].append((place, chunk))
        entries[number] = entry
    done = (
        chunk.weights * item.array.dtype.itemsize
        for item, chunks in zip(items, placed, strict=True)
        for _, chunk in chunks
    )
    expect(progress, sum(item.nbytes for item in items), sum(done))
    waiting = {n: len(placed[n]) for n, entry in enumerate(entries) if entry is None}
    for number, described, coded in _coded(items, waiting):
        name, chunks = items[number].name, placed[number]
        for chunk, payload in coded:
            chunks.append((writer.append(payload), chunk))
            entries[number] = _entry(name, described, chunks)
            writer.record(RECORD.write((number, chunks[-1][0], chunk, entries[number])))
            if progress:
                progress(chunk.weights * items[number].array.dtype.itemsize)
        if not coded:
            entries[number] = _entry(name, described, chunks)
    assert all(entries)
    return tuple(entry for entry in entries if entry is not None)


def _entry(name: str, described: Description, placed: Placed) -> Entry | None:
    """The entry of an item, if its chunks are all there."""
    if len(placed) * described.chunk_weights < described.size:
        return None
    header = described.header([chunk for _, chunk in placed])
    return Entry(name, header, tuple(place for place, _ in placed))


def _coded(items: Sequence[Item], waiting: Mapping[int, int]) -> Iterator[Coded]:
    """Chunks in order; many items are coded together.

    Args:
      waiting: which items, and how many of their chunks are there.
    """
    for is_coded, group in itertools.groupby(waiting, lambda n: is_compressed(items[n].array)):
        numbers = list(group)
        if is_coded:
            for number in numbers:
                tensor: Any = items[number].array
                chunks = list(coded_chunks(items[number].name, tensor))[waiting[number] :]
                for item in chunks:
                    coder.check_payload(item)
                yield number, tensor.header, [(item.chunk, item.payload) for item in chunks]
        else:
            makers = (partial(items[number].make, waiting[number]) for number in numbers)
            sizes = (items[number].nbytes * items[number].reads for number in numbers)
            by_draft = itertools.groupby(
                coder.encode(coder.drafts(makers, sizes)), key=itemgetter(0)
            )
            for number, (draft, parts) in zip(numbers, by_draft, strict=True):
                yield from ((number, draft, coded) for _, coded in parts)
