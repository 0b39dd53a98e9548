"""What is written, wherever it comes from: items become chunks in bundles and entries of an index.

What was done when work ended early stands in the journal of the `Writer`. An entry is taken over
whole, once its source has been read again and has the same hashes, or not at all.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import xxhash

from jentropy.containers import coder, drafting, memory
from jentropy.containers.chunks import coded_chunks
from jentropy.containers.tensor import (
    Chunk,
    CompressedTensor,
    Description,
    checksum,
    is_compressed,
)
from jentropy.errors import InputError
from jentropy.formats import RAW, codes_of, format_of_dtype
from jentropy.release import RELEASE

from . import space
from .bases import Base, Bases, digest_of, expect_base, paths, with_bases
from .contents import StoredArray
from .entries import VERSION, Entry
from .hosts import Team
from .progress import Progress, expect
from .staging import expect_space
from .writer import Writer

JOURNAL_VERSION = 3

Placed = list[tuple[tuple[int, int], Chunk]]  # chunks of an item by their places


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A tensor or a blob to write.

    Attributes:
      name: of its entry.
      array: what it holds; if that is compressed already, it is copied.
      draft: how it is coded: `drafting.Original` with its options, or `drafting.blob`.
      reads: whether reading the array takes memory: it is not mapped.
      base: a checkpoint by whose tensor of the same name the array may be told.
    """

    name: str
    array: StoredArray | CompressedTensor
    draft: Callable[..., drafting.Draft | drafting.Original] = drafting.Original
    reads: bool = False
    base: Base | None = None

    @property
    def base_number(self) -> int | None:
        """Number of the base's tensor by which it may be told."""
        if self.base is None or self.draft is drafting.blob:
            return None
        return self.base.number_of(self.name, self.array.shape, self.array.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the original."""
        return math.prod(self.array.shape) * self.array.dtype.itemsize

    def make(self) -> drafting.Draft | drafting.Original:
        """Its draft, or what that is made of."""
        assert isinstance(self.array, StoredArray)
        number = self.base_number
        if self.base is None or number is None:
            return self.draft(self.name, self.array.read())
        return self.draft(self.name, self.array.read(), base=partial(self.base.codes, number))

    def gave(self, entry: Entry) -> bool:
        """Whether an entry is what writing this item gives, by its description and hashes."""
        if not isinstance(self.array, StoredArray):
            return entry.name == self.name and entry.header == self.array.header
        if not self._is_described_by(entry):
            return False
        codes = codes_of(self.array.read()).reshape(-1)
        header = entry.header
        return all(
            checksum(codes[span.start : span.start + span.size]) == chunk.codes_hash
            for span, chunk in zip(header.spans(), header.chunks, strict=True)
        )

    def _is_described_by(self, entry: Entry) -> bool:
        header, options = entry.header, getattr(self.draft, "keywords", {})
        element = options.get("element")
        if self.draft is drafting.blob:
            number_format = RAW
        else:
            number_format = element.name if element else format_of_dtype(self.array.dtype)
        ours = self.name, tuple(self.array.shape), self.array.dtype.name, number_format
        theirs = entry.name, header.shape, header.dtype, header.format
        told = {key: getattr(header, key) for key in ("numpy", "scalar", "key") if key in options}
        return ours == theirs and all(options[key] == value for key, value in told.items())


def with_base(items: Sequence[Item], bases: Bases) -> tuple[Sequence[Item], Base | None]:
    """Items that may be told by the tensors of a base, and the base; see `save`."""
    given = paths(bases)
    if not given:
        return items, None
    store = with_bases(given[0], given[1:])
    expect_base(store)
    base = Base(store)
    return [replace(item, base=base) for item in items], base


def base_digest(entries: Iterable[Entry], base: Base | None) -> int | None:
    """What names the base in the index of entries some of which are told by it."""
    numbers = [entry.base for entry in entries if entry.base is not None]
    if base is None or not numbers:
        return None
    return digest_of(base.store.index.tensors[number] for number in numbers)


def fingerprint(of: str, base: Base | None = None) -> str:
    """Of work that may be taken up; changes with the release, its format and the base.

    Args:
      of: what is written.
    """
    state = [RELEASE, VERSION, JOURNAL_VERSION, of]
    if base is not None:
        state.append(digest_of(base.store.index.tensors))
    return xxhash.xxh3_128_hexdigest(json.dumps(state).encode())


# An item, what its header says but the chunks, and its next chunks with their payloads.
Coded = tuple[Item, Description, list[tuple[Chunk, np.ndarray]]]


def write(
    writer: Writer, items: Sequence[Item], progress: Progress | None = None
) -> tuple[Entry, ...]:
    """Writes this process' share of items, in order, but those that earlier work wrote.

    Args:
      progress: called with the bytes done since the last call.

    Returns:
      The entries of the share.
    """
    sizes = [item.nbytes for item in items]
    _expect_same(writer.team, [item.name for item in items], sizes)
    begin, end = writer.team.share(sizes)[writer.team.number]
    items, total = items[begin:end], sum(sizes[begin:end])
    memory.expect(min(memory.WORKING, total), "compressing")
    entries: list[Entry] = []
    for item, entry in zip(items, writer.journal(), strict=False):
        if not (item.gave(entry) and writer.take_up(entry)):
            break
        entries.append(entry)
    writer.begin(entries)
    expect_space(writer.path, _least_bytes(items[len(entries) :]))
    done = (entry.header.raw_bytes for entry in entries)
    expect(progress, total, sum(done))
    placed: Placed = []
    for item, described, coded in _coded(items[len(entries) :]):
        for chunk, payload in coded:
            placed.append((writer.append(payload), chunk))
            if progress:
                progress(chunk.weights * item.array.dtype.itemsize)
        if (made := _entry(item, described, placed)) is not None:
            entries.append(made)
            writer.record(made)
            placed = []
    assert len(entries) == len(items)
    return tuple(entries)


def _expect_same(team: Team, names: Sequence[str], sizes: Sequence[int]) -> None:
    """Raises InputError if another process is to write something else."""
    text = json.dumps([names, sizes]) if team.count > 1 else ""
    ours = xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
    for number, theirs in enumerate(team.meet(ours)):
        if theirs != ours:
            raise InputError(
                "source", expected="the same one in all processes", found=f"another in {number}"
            )


def _least_bytes(items: Sequence[Item]) -> int:
    """What items will take at the least."""
    packed = sum(item.array.nbytes for item in items if is_compressed(item.array))
    unread = sum(item.nbytes for item in items if item.reads)
    arrays = (item.array for item in items if not item.reads)
    mapped = space.least_bytes(array for array in arrays if isinstance(array, StoredArray))
    return mapped + packed + int(space.UNREAD * unread)


def _entry(item: Item, described: Description, placed: Placed) -> Entry | None:
    """The entry of an item, if its chunks are all there."""
    if len(placed) * described.chunk_weights < described.size:
        return None
    header = described.header([chunk for _, chunk in placed])
    base = item.base_number if described.delta else None
    return Entry(item.name, header, tuple(place for place, _ in placed), base)


def _coded(items: Sequence[Item]) -> Iterator[Coded]:
    """Chunks in order; many items are coded together."""
    for is_coded, group in itertools.groupby(items, lambda item: is_compressed(item.array)):
        run = list(group)
        if is_coded:
            for item in run:
                tensor: Any = item.array
                chunks = list(coded_chunks(item.name, tensor))
                for coded in chunks:
                    coder.check_payload(coded)
                yield item, tensor.header, [(coded.chunk, coded.payload) for coded in chunks]
        else:
            sizes, reads = (item.nbytes for item in run), (item.reads for item in run)
            drafts = drafting.drafts((item.make for item in run), sizes, reads=reads)
            by_draft = itertools.groupby(coder.encode(drafts), key=itemgetter(0))
            for item, (draft, parts) in zip(run, by_draft, strict=True):
                yield from ((item, draft, coded) for _, coded in parts)
