"""What a release writes, beside what an older one wrote of the same input."""

from __future__ import annotations

from collections.abc import Collection

from jentropy.checkpoints.entries import Entry
from jentropy.checkpoints.store import Store


def same_tensors(golden: Store, again: Store, cheaper: Collection[str] = ()) -> None:
    """Holds payloads and headers to the golden ones, but for tensors that have to take less."""
    assert set(cheaper) <= {entry.name for entry in golden.index.tensors}
    for entry, other in zip(golden.index.tensors, again.index.tensors, strict=True):
        if entry.name in cheaper:
            assert _size(other) < _size(entry)
            continue
        assert entry.header == other.header
        for a, b, chunk in zip(entry.places, other.places, entry.header.chunks, strict=True):
            assert (golden.payload(*a, chunk.bytes) == again.payload(*b, chunk.bytes)).all()


def _size(entry: Entry) -> int:
    return entry.header.payload_bytes + len(entry.header.coding.head)
