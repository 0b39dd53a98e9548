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
from jentropy.schema import ANY, SIZE, many, parse, record

from . import index as index_lib
from . import orbax
from .entries import Index
from .staging import destination_errors, put_in_place, staged
from .store import Store, is_compressed_checkpoint

BUNDLE_BYTES = 1 << 26  # what a writer holds in memory, and what a crash costs at the most
SAVE_BYTES = 1 << 30  # handed to Orbax in one call; each call costs it time for all before
INDEX, BUNDLES = "index", "bundles"
LINE = record(dict, {"bytes": SIZE, "hash": SIZE, "records": many(ANY)})  # of the journal


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
      journal: what earlier, unfinished work recorded, in order.
    """

    def __init__(
        self, path: Path, stage: Path, fingerprint: str | None, *, overwrite: bool = False
    ):
        self.path, self.stage, self._overwrite = path, stage, overwrite
        self._journal_file = stage / "journal.jsonl"
        self._records: list[Any] = []
        self._payloads: list[np.ndarray] = []
        self._size = 0  # of the bundle begun
        first = _line({"fingerprint": fingerprint})
        with destination_errors(path):
            lines = [] if fingerprint is None else list(self._sound_lines(first))
            self._journal_file.write_text(first + "".join(map(_line, lines)), encoding="utf-8")
        self._staged = [(line["bytes"], line["hash"]) for line in lines]
        self.journal = [item for line in lines for item in line["records"]]

    def _bundle_file(self, number: int) -> Path:
        return self.stage / f"{number:05d}"

    def _sound_lines(self, first: str) -> Iterator[dict[str, Any]]:
        """Lines of a journal that begins so, as long as they and their bundles are whole."""
        text = self._journal_file.read_text("utf-8") if self._journal_file.is_file() else ""
        lines = text.removeprefix(first).split("\n")[:-1] if text.startswith(first) else []
        for number, line in enumerate(lines):
            file = self._bundle_file(number)
            try:
                told = parse(LINE, line, self._journal_file)
                sound = file.stat().st_size == told["bytes"]
            except (CorruptError, FileNotFoundError):
                return
            if not sound or checksum(np.fromfile(file, np.uint8)) != told["hash"]:
                return
            yield told

    def append(self, payload: np.ndarray) -> tuple[int, int]:
        """Adds a payload; returns its bundle and its offset there."""
        if self._size >= BUNDLE_BYTES:
            self.flush()
        place = len(self._staged), self._size
        self._payloads.append(payload)
        self._size += payload.size
        return place

    def record(self, item: Any) -> None:
        """Notes JSON in the journal, with the payloads added so far."""
        self._records.append(item)

    def flush(self) -> None:
        """Stages the bundle begun."""
        if not self._payloads:
            return
        bundle = np.concatenate(self._payloads)
        line = {"bytes": bundle.size, "hash": checksum(bundle), "records": self._records}
        with destination_errors(self.path):
            _write(self._bundle_file(len(self._staged)), "wb", bundle.data)
            _write(self._journal_file, "ab", _line(line).encode())
        self._staged.append((line["bytes"], line["hash"]))
        self._records, self._payloads, self._size = [], [], 0

    def finish(self, **contents: Any) -> None:
        """Writes the checkpoint and puts it in its place.

        Args:
          contents: arguments of `Index` but the bundles.
        """
        self.flush()
        index = Index(bundles=tuple(size for size, _ in self._staged), **contents)
        text = np.frombuffer(index_lib.to_bytes(index), np.uint8)
        metadata = {"version": index_lib.VERSION, "index_xxh3_64": f"{checksum(text):016x}"}
        with destination_errors(self.path):
            made = orbax.save_arrays(
                self.stage,
                itertools.chain(self._groups(), [{INDEX: text}]),
                custom_metadata={index_lib.KEY: metadata},
            )
            Store(made)  # what cannot be opened again is not put in place
            put_in_place(made, self.path, replace=self._overwrite)

    def _groups(self) -> Iterator[dict[str, Any]]:
        """The staged bundles as trees of about SAVE_BYTES."""
        group: dict[str, np.ndarray] = {}
        for number, (size, expected) in enumerate(self._staged):
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


def _line(content: Any) -> str:
    return json.dumps(content) + "\n"


def _write(file: Path, mode: str, data: Any) -> None:
    with file.open(mode) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
