"""Writes compressed checkpoints: bundles where they will stay, with a journal, then all the rest.

    .DST.jentropy-compress/journal.jsonl       a fingerprint, then entries whose payloads are there
    .DST.jentropy-compress/out/                what becomes DST, by one rename
    .DST.jentropy-compress/out/state/bundles.* each bundle, written once, as zarr lays it out
    .DST.jentropy-compress/frame/              what Orbax writes of the index alone, moved to out/

Orbax saves only the index, whose metadata then name the bundles too, as if it had written them:
finishing takes a time for each bundle and no space. Of several processes each has such a stage; the
first takes the bundles of the others last of all. Payloads lie in the order of the entries, so
work that is taken up continues the bundle in which its last sound entry ends, and gives the bytes
that it would have given at once. An entry of the journal is sound if every payload lies in its
place and has its hash; whoever resumes also holds it to its source (`items`).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jentropy.containers.tensor import checksum
from jentropy.errors import DestinationError, InputError
from jentropy.schema import many, parse

from . import delivering, durable, faults, frames, shared_stages, zarr_files
from . import index as index_lib
from .entries import VERSION, WITH_BASE, Entry, Index
from .hosts import Team
from .index import ENTRY
from .remote import RemotePath
from .shared_stages import other_than_compressed, purpose_of
from .staging import OUT, put_in_place, staged
from .store import ARRAYS, Store, bundle_name

BUNDLE_BYTES = 1 << 26  # what a crash costs at the most, beside the tensor begun
LINE = many(ENTRY)  # of the journal, after the hash of its JSON
HASH_DIGITS = 16


@contextmanager
def writing(
    path: Path, team: Team, fingerprint: str | None = None, *, overwrite: bool = False
) -> Iterator[Writer]:
    """A `Writer` of `path`, after `shared_stages.expect_free`.

    Args:
      team: who writes it together.
      fingerprint: says what is written; staged work with the same one can be taken up and stays
        after a failure, any other is thrown away. None: no work is taken up, or stays.
      overwrite: whether a compressed checkpoint that is there is replaced.
    """
    replaces = other_than_compressed if overwrite else None
    resumable = fingerprint is not None
    purpose = purpose_of(team.number, team.count)
    with staged(path, purpose, resumable=resumable, replaces=replaces) as stage:
        writer = Writer(path, stage, team, fingerprint, overwrite=overwrite)
        try:
            yield writer
        finally:
            writer.close()


class Writer:
    """Writes a compressed checkpoint. Made by `writing`.

    First earlier work is taken up (`journal`, `take_up`), then `begin`, then payloads and entries.
    """

    def __init__(
        self,
        path: Path,
        stage: Path,
        team: Team,
        fingerprint: str | None,
        *,
        overwrite: bool = False,
    ):
        self.path, self.stage, self.team, self._overwrite = path, stage, team, overwrite
        self._made = stage / OUT
        self._journal_file = stage / "journal.jsonl"
        self._first = _hashed(json.dumps([fingerprint, team.number, team.count]))
        self._resumable = fingerprint is not None
        self._sizes: list[int] = []  # of the bundles that are full
        self._size = 0  # of the one begun
        self._stream: BinaryIO | None = None  # of the one begun
        self._entries: list[Entry] = []  # that the journal does not have

    def _bundle(self, number: int) -> Path:
        return self._made / ARRAYS / bundle_name(number)

    def _chunk(self, number: int) -> Path:
        return self._bundle(number) / zarr_files.CHUNK

    # Earlier work.

    def journal(self) -> Iterator[Entry]:
        """Entries that earlier work of the same fingerprint recorded, in order."""
        if not (self._resumable and self._journal_file.is_file()):
            return
        with self._journal_file.open(encoding="utf-8", errors="replace") as lines:
            if next(lines, "") != self._first:
                return
            for line in lines:
                text = line[HASH_DIGITS + 1 : -1]
                if line != _hashed(text):  # it was cut off, or damaged
                    return
                try:
                    yield from parse(LINE, text, self._journal_file)
                except InputError:  # nobody's but a forger's
                    return

    def take_up(self, entry: Entry) -> bool:
        """Takes over an entry as the next one, if its payloads lie in their places."""
        full, size = len(self._sizes), self._size
        for place, chunk in zip(entry.places, entry.header.chunks, strict=True):
            self._turn()
            found = self._staged(*place, chunk.bytes)
            if (
                place != (len(self._sizes), self._size)
                or found.size != chunk.bytes
                or checksum(found) != chunk.payload_hash
            ):
                del self._sizes[full:]
                self._size = size
                return False
            self._size += chunk.bytes
        return True

    def _staged(self, bundle: int, offset: int, size: int) -> np.ndarray:
        chunk = self._chunk(bundle)
        places = (chunk, chunk.parent, chunk.parent.parent, self._made / ARRAYS, self._made)
        try:
            if any(place.is_symlink() for place in places):
                return np.zeros(0, np.uint8)
            return np.fromfile(chunk, np.uint8, size, offset=offset)
        except OSError:
            return np.zeros(0, np.uint8)

    def begin(self, entries: Sequence[Entry] = ()) -> None:
        """Removes all that is staged but the entries that were taken up."""
        with faults.writing(self.path):
            arrays = self._made / ARRAYS
            for folder in (self._made, arrays):
                if folder.is_symlink():
                    folder.unlink()
                folder.mkdir(exist_ok=True)
            begun = len(self._sizes)
            kept = {bundle_name(number) for number in range(begun + (self._size > 0))}
            for folder, names in ((self._made, {ARRAYS}), (arrays, kept)):
                for inside in folder.iterdir():
                    if inside.name not in names:
                        _remove(inside)
            for number, size in enumerate(self._sizes):
                if not zarr_files.is_array(self._bundle(number), size):
                    durable.truncate(self._chunk(number), size)
                    self._complete(number, size, durable.opened(self._chunk(number), keep=True))
            if self._size:
                durable.truncate(self._chunk(begun), self._size)
            lines = _hashed(json.dumps(LINE.write(entries)))
            renewed = self.stage / "journal.renewed"
            durable.write(renewed, (self._first + lines).encode())
            os.replace(renewed, self._journal_file)

    # New work.

    def append(self, payload: np.ndarray) -> tuple[int, int]:
        """Adds a payload, uint8[n]; returns its bundle and its offset there."""
        if self._size >= BUNDLE_BYTES:
            self.flush()
        place = len(self._sizes), self._size
        with faults.writing(self.path):
            if self._stream is None:
                chunk = self._chunk(place[0])
                chunk.parent.mkdir(parents=True, exist_ok=True)
                self._stream = durable.opened(chunk, keep=self._size > 0)
            self._stream.write(payload.data)
        self._size += payload.size
        return place

    def record(self, entry: Entry) -> None:
        """Notes an entry, all of whose payloads were added."""
        self._entries.append(entry)

    def flush(self) -> None:
        """Ends the bundle begun; what is recorded so far survives."""
        with faults.writing(self.path):
            if self._size:
                stream = self._stream or durable.opened(self._chunk(len(self._sizes)), keep=True)
                self._stream = None
                self._complete(len(self._sizes), self._size, stream)
                self._sizes.append(self._size)
                self._size = 0
            if self._entries and self._resumable:
                line = _hashed(json.dumps(LINE.write(self._entries)))
                durable.write(self._journal_file, line.encode(), keep=True)
            self._entries = []

    def _turn(self) -> None:
        """Begins the next bundle, if this one is full."""
        if self._size >= BUNDLE_BYTES:
            self._sizes.append(self._size)
            self._size = 0

    def _complete(self, number: int, size: int, stream: BinaryIO) -> None:
        """Makes a zarr array of a bundle's bytes."""
        stream.write(zarr_files.shard_index(size))
        durable.close(stream)
        folder = self._bundle(number)
        durable.write(folder / zarr_files.METADATA, zarr_files.metadata(size))
        durable.sync_folder(folder / "c")
        durable.sync_folder(folder)

    def finish(
        self, entries: Sequence[Entry], contents: Callable[[Sequence[Entry]], dict[str, Any]]
    ) -> None:
        """Writes the rest of the checkpoint and puts it in its place.

        Args:
          entries: of what this process wrote.
          contents: makes arguments of `Index`, all but the bundles, of the entries of all.
        """
        self.flush()
        sizes, everything = self._of_all(entries)
        sent = self._send_bundles(sizes) if self._is_sent else ()
        if self.team.number == 0:
            told = contents(everything)
            version = VERSION if told.get("base") is None else WITH_BASE
            index = Index(bundles=tuple(itertools.chain(*sizes)), version=version, **told)
            text = index_lib.to_bytes(index)
            with faults.writing(self.path):
                frame = self.stage / "frame"
                _remove(frame)
                frame.mkdir()
                self._move(frames.make(frame, text, len(index.bundles), index.version))
                if not self._is_sent:
                    shared_stages.take_bundles(self.path, sizes)
                self._open_again()
                put_in_place(self._made, self.path, replace=self._overwrite, keep=sent)
                shared_stages.give_up_others(self.path, self.team.count)
        self.team.meet()

    def _of_all(self, entries: Sequence[Entry]) -> tuple[list[list[int]], list[Entry]]:
        """Bundles that each process wrote, and the entries of all, whose places are among all."""
        if self.team.count == 1:
            return [self._sizes], list(entries)
        told = self.team.meet(json.dumps(self._sizes).encode())
        sizes, everything, first = [json.loads(text) for text in told], list[Entry](), 0
        ours = zlib.compress(json.dumps(LINE.write(entries)).encode())
        lines = self.team.meet(ours, listens=self.team.number == 0)
        for made, message in zip(sizes, lines, strict=False):
            for entry in parse(LINE, zlib.decompress(message), self._journal_file):
                places = tuple((bundle + first, offset) for bundle, offset in entry.places)
                everything.append(replace(entry, places=places))
            first += len(made)
        return sizes, everything

    @property
    def _is_sent(self) -> bool:
        """Whether each process sends its own bundles to where the checkpoint will be."""
        return self.team.count > 1 and isinstance(self.path, RemotePath)

    def _send_bundles(self, sizes: list[list[int]]) -> list[str]:
        """Sends what this process has to a URL; the names that bundles of all have there."""
        assert isinstance(self.path, RemotePath)
        files = (zarr_files.CHUNK, zarr_files.METADATA)
        everybody = range(sum(map(len, sizes)))
        kept = [f"{ARRAYS}/{bundle_name(n)}/{file}" for n in everybody for file in files]
        if self.team.number == 0:
            delivering.begin(self.path, kept, replace=self._overwrite)
        self.team.meet()
        if self.team.number:
            first = sum(map(len, sizes[: self.team.number]))
            names = {
                f"{ARRAYS}/{bundle_name(n)}/{file}": f"{ARRAYS}/{bundle_name(first + n)}/{file}"
                for n in range(len(self._sizes))
                for file in files
            }
            delivering.put(self._made, self.path, names, self.stage / delivering.SENT)
        self.team.meet()
        return kept

    def _open_again(self) -> None:
        """Raises DestinationError if what was made cannot be read: it is not put in place."""
        found: list[InputError] = []
        try:
            Store(self._made, found)
        except InputError as error:
            found.append(error)
        if found:
            what = f"what was written cannot be opened again: {found[0].what}"
            raise DestinationError(what, file=self.path) from found[0]

    def _move(self, frame: Path) -> None:
        """Moves what Orbax wrote of the index to the bundles."""
        durable.sync_tree(frame)
        for inside in (*(frame / ARRAYS).iterdir(), *frame.iterdir()):
            if inside != frame / ARRAYS:
                os.rename(inside, self._made / inside.relative_to(frame))
        durable.sync_folder(self._made / ARRAYS)
        durable.sync_folder(self._made)

    def close(self) -> None:
        """Lets go of the bundle begun."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()


def _hashed(text: str) -> str:
    """A line of the journal."""
    digest = checksum(np.frombuffer(text.encode("utf-8", "replace"), np.uint8))
    return f"{digest:0{HASH_DIGITS}x} {text}\n"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
