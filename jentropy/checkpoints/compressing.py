"""Checkpoints into compressed checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import xxhash

from jentropy.containers import coder
from jentropy.containers.tensor import Chunk
from jentropy.errors import InputError
from jentropy.schema import DIGEST, SIZE, optional, record, row

from . import index as index_lib
from .any_source import read_source
from .array_store import ZarrArray
from .hub import resolve
from .orbax_source import OrbaxSource
from .planning import Item, collect
from .progress import Progress, expect
from .sources import FileSource
from .staging import refuse_existing
from .store import is_compressed_checkpoint
from .writer import Writer, other_than_compressed, writing

READ_BYTES = 1 << 29  # of arrays that are read ahead
JOURNAL_VERSION = 2
CHUNK = record(
    Chunk, {"weights": SIZE, "bytes": SIZE, "payload_hash": DIGEST, "codes_hash": DIGEST}
)
# Number of an item, place of its next chunk, the chunk, and its entry with the last one.
RECORD = row(SIZE, row(SIZE, SIZE), CHUNK, optional(index_lib.ENTRY))


def compress_checkpoint(
    src: str | Path,
    dst: str | Path,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    step: int | None = None,
    strict: bool = False,
) -> None:
    """Compresses a checkpoint, with every file that lies beside its weights.

    Killed or interrupted work is taken up by the next call with the same arguments.

    Args:
      src: a safetensors or GGUF file, a directory of such files, what Orbax wrote (the root of a
        `CheckpointManager`, a step, an item), or `hf://owner/name`.
      dst: where the compressed checkpoint will appear, whole or not at all.
      progress: called with the bytes done since the last call; see `progress.Progress`.
      overwrite: whether a compressed checkpoint that is there is replaced, once this one is done.
      step: the only step of a manager's root that is wanted; None: all of them.
      strict: see `open_checkpoint`; every byte is kept either way.

    Raises:
      InputError: a source that cannot be read, by file and tensor.
      DestinationError: `dst` exists or cannot be written.
    """
    target = Path(dst)
    refuse_existing(target, other_than_compressed if overwrite else None)
    source = resolve(src)
    if overwrite and source.resolve().is_relative_to(target.resolve()):
        raise InputError("source lies inside the destination", file=source)
    if is_compressed_checkpoint(source):
        raise InputError("already a compressed checkpoint", file=source)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise InputError("destination lies inside the source", file=target)
    files = read_source(source, step)
    plan = collect(files, strict=strict)
    items, fingerprint = plan.items, _fingerprint(files)
    with writing(target, fingerprint, overwrite=overwrite) as writer:
        _write(writer, items, progress)
        if _fingerprint(files) != fingerprint:
            raise InputError("files changed while they were being compressed", file=source)
        writer.finish(
            tensors=tuple(item.entry for item in items if not item.is_blob),
            blobs=tuple(item.entry for item in items if item.is_blob),
            files=tuple(plan.files),
            beside=files.beside(),
            tree=plan.tree,
            stores=tuple(plan.stores),
            formats=plan.formats,
            weights=plan.weights,
        )


def _fingerprint(source: FileSource | OrbaxSource) -> str:
    """Changes with any file of the source and with this release's format."""
    stats = [(source.root / name).stat() for name in source.files]
    state = [
        index_lib.VERSION,
        JOURNAL_VERSION,
        str(source.root.resolve()),
        [(n, s.st_size, s.st_mtime_ns) for n, s in zip(source.files, stats, strict=True)],
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(state).encode())


def _write(writer: Writer, items: list[Item], progress: Progress | None) -> None:
    for number, place, chunk, entry in map(RECORD.read, writer.journal):
        items[number].chunks.append((place, chunk))
        items[number].entry = entry
    total = sum(item.values.nbytes for item in items)
    expect(progress, total, done=sum(item.done_bytes for item in items))
    waiting = [number for number, item in enumerate(items) if item.entry is None]
    numbers: dict[int, int] = {}

    def drafts() -> Iterator[coder.Draft]:
        for group in _groups(items, waiting):
            made = coder.drafts(items[number].draft for number in group)
            for number, draft in zip(group, made, strict=True):
                numbers[id(draft)] = number
                yield draft

    for draft, chunks in coder.encode(drafts()):
        number = numbers[id(draft)]
        item = items[number]
        if not chunks:
            item.finish(draft)
        for chunk, payload in chunks:
            place = writer.append(payload)
            item.chunks.append((place, chunk))
            item.finish(draft)
            writer.record(RECORD.write((number, place, chunk, item.entry)))
            if progress:
                progress(chunk.weights * item.values.dtype.itemsize)
    writer.flush()


def _groups(items: list[Item], numbers: list[int]) -> Iterator[list[int]]:
    """Numbers of items in groups of which at most READ_BYTES are to be read, not mapped."""
    group: list[int] = []
    held = 0
    for number in numbers:
        values = items[number].values
        size = values.nbytes if isinstance(values, ZarrArray) else 0
        if group and held + size > READ_BYTES:
            yield group
            group, held = [], 0
        group.append(number)
        held += size
    if group:
        yield group
