"""Writes compressed checkpoints: bundles staged with a journal, then one Orbax checkpoint.

Work that was killed or interrupted leaves its staged bundles and their journal; the next run with
the same fingerprint goes on from there. For a moment, staged bundles and the finished checkpoint
both take their space.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers.tensor import checksum
from jentropy.errors import CorruptError

from . import index as index_lib
from . import orbax
from .index import Index
from .staging import destination_errors, put_in_place, staged
from .store import Store, is_compressed_checkpoint

BUNDLE_BYTES = 1 << 26  # what a writer holds in memory, and what a crash costs at the most
SAVE_BYTES = 1 << 30  # handed to Orbax in one call; each call costs it time for all before
INDEX, BUNDLES = "index", "bundles"


@contextmanager
def writing(
    path: Path, fingerprint: str | None = None, *, overwrite: bool = False
) -> Iterator[Writer]:
    """A `Writer` of `path` that leaves nothing behind when it fails.

    Args:
      fingerprint: says what is written; staged work with the same one is taken up, any other is
        thrown away. None: no work is taken up.
      overwrite: whether a compressed checkpoint that is there is replaced.
    """
    replaces = other_than_compressed if overwrite else None
    resumable = fingerprint is not None
    with staged(path, "compress", resumable=resumable, replaces=replaces) as stage:
        yield Writer(path, stage, fingerprint, overwrite=overwrite)


def other_than_compressed(path: Path) -> str:
    """What a path holds, if that is no compressed checkpoint."""
    return "" if is_compressed_checkpoint(path) else "no compressed checkpoint"


class Writer:
    """Writes a compressed checkpoint. Made by `writing`.

    Attributes:
      bundles: bytes of the bundles staged so far.
      journal: what earlier, unfinished work recorded, in order.
    """

    def __init__(
        self, path: Path, stage: Path, fingerprint: str | None, *, overwrite: bool = False
    ):
        self.path, self.stage, self._overwrite = path, stage, overwrite
        self.bundles: list[int] = []
        self.journal: list[Any] = []
        self._hashes: list[int] = []
        self._records: list[Any] = []
        self._parts: list[np.ndarray] = []
        self._held = 0
        with destination_errors(path):
            lines = self._take_up() if fingerprint else []
            if not lines or lines[0] != {"fingerprint": fingerprint}:
                lines = [{"fingerprint": fingerprint}]
            kept = self._staged(lines[1:])
            text = "".join(json.dumps(line) + "\n" for line in [lines[0], *kept])
            self._journal_file.write_text(text, encoding="utf-8")

    @property
    def _journal_file(self) -> Path:
        return self.stage / "journal.jsonl"

    def _bundle_file(self, number: int) -> Path:
        return self.stage / f"{number:05d}"

    def _take_up(self) -> list[Any]:
        """Lines of a journal that is there, up to one that was cut off."""
        if not self._journal_file.is_file():
            return []
        lines = []
        for line in self._journal_file.read_text("utf-8").split("\n")[:-1]:
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines

    def _staged(self, lines: list[Any]) -> list[Any]:
        """The lines whose bundles are there and sound."""
        for number, line in enumerate(lines):
            file = self._bundle_file(number)
            if not file.is_file() or file.stat().st_size != line["bytes"]:
                break
            if checksum(np.fromfile(file, np.uint8)) != line["hash"]:
                break
            self.bundles.append(line["bytes"])
            self._hashes.append(line["hash"])
            self.journal += line["records"]
        return lines[: len(self.bundles)]

    def append(self, payload: np.ndarray) -> tuple[int, int]:
        """Adds a payload; returns its bundle and its offset there."""
        place = len(self.bundles), self._held
        self._parts.append(payload)
        self._held += payload.size
        return place

    def record(self, item: Any) -> None:
        """Notes JSON in the journal, with the payloads added so far."""
        self._records.append(item)
        if self._held >= BUNDLE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Stages the bundle begun."""
        if not self._held:
            return
        bundle = np.concatenate(self._parts)
        digest = checksum(bundle)
        line = {"bytes": bundle.size, "hash": digest, "records": self._records}
        with destination_errors(self.path):
            _write(self._bundle_file(len(self.bundles)), "wb", bundle.data)
            _write(self._journal_file, "ab", (json.dumps(line) + "\n").encode())
        self.bundles.append(bundle.size)
        self._hashes.append(digest)
        self._records, self._parts, self._held = [], [], 0

    def finish(self, **contents: Any) -> None:
        """Writes the checkpoint and puts it in its place.

        Args:
          contents: arguments of `Index` but the bundles.
        """
        self.flush()
        index = Index(bundles=tuple(self.bundles), **contents)
        text = np.frombuffer(index_lib.to_bytes(index), np.uint8)
        metadata = {
            index_lib.KEY: {"version": index_lib.VERSION, "index_xxh3_64": f"{checksum(text):016x}"}
        }
        with destination_errors(self.path):
            made = orbax.save_arrays(
                self.stage,
                itertools.chain(self._groups(), [{INDEX: text}]),
                custom_metadata=metadata,
            )
            Store(made)  # what cannot be opened again is not put in place
            put_in_place(made, self.path, replace=self._overwrite)

    def _groups(self) -> Iterator[dict[str, Any]]:
        """The staged bundles as trees of about SAVE_BYTES."""
        group: dict[str, np.ndarray] = {}
        for number, (size, expected) in enumerate(zip(self.bundles, self._hashes, strict=True)):
            bundle = np.fromfile(self._bundle_file(number), np.uint8)
            if bundle.size != size or checksum(bundle) != expected:
                raise CorruptError(
                    "staged bundle",
                    file=self._bundle_file(number),
                    expected=f"{size} bytes as they were written",
                    found=f"{bundle.size} other bytes",
                )
            group[f"{number:05d}"] = bundle
            if sum(b.size for b in group.values()) >= SAVE_BYTES:
                yield {BUNDLES: group}
                group = {}
        if group:
            yield {BUNDLES: group}


def _write(file: Path, mode: str, data: Any) -> None:
    with file.open(mode) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
