"""A compressed checkpoint as a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from jentropy.formats import codes_of

from . import collecting
from .archived import Archive
from .bases import Bases, with_bases
from .checkpoint import Arrays, Checkpoint, Parts, Tensor
from .contents import decode_text
from .decoding import read_chunks, read_entries, read_part
from .entries import Entry


class CompressedCheckpoint(Checkpoint):
    """Weights of a compressed checkpoint; a weight is decoded when its codes are asked for.

    Args:
      within: path of one of its files or folders, to see that alone.
      strict: whether a weight that its dialect cannot explain is an error.
      lenient: whether what keeps it from being a checkpoint is a note.
      base: see `load`.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jentropy.save(f"{folder}/t", {"w": np.ones((2, 3), np.float16)})
      ...     checkpoint = jentropy.open_checkpoint(f"{folder}/t")
      >>> type(checkpoint).__name__, checkpoint.names(), checkpoint.tensor("w").shape
      ('CompressedCheckpoint', ['w'], (2, 3))
    """

    def __init__(
        self,
        path: Path,
        within: str = "",
        *,
        strict: bool = False,
        lenient: bool = False,
        base: Bases = None,
    ):
        with collecting.put_off():
            self.store = with_bases(path, base)
            self.archive = Archive(self.store, within)
            view = self.archive.view(strict=strict, lenient=lenient)
        super().__init__(path / within, view.tensors, view.config, view.notes)

    @cached_property
    def arrays(self) -> dict[str, dict[str, Entry]]:
        """The entries that each array is made of, by its name."""
        return dict(self.archive.arrays())

    def read_runs(self) -> Iterator[tuple[Tensor, Iterator[Arrays]]]:
        entries = {name: self._plain(self.tensor(name)) for name in self.names()}
        plain = [entry for entry in entries.values() if entry and entry.places]
        decoded = read_chunks(self.store, plain)
        for name, entry in entries.items():
            tensor = self.tensor(name)
            if entry and entry.places:
                yield tensor, ({"code": codes} for codes in next(decoded))
            else:
                yield tensor, tensor.runs()

    def read_all(self, parts: Parts | None = None) -> Iterator[tuple[Tensor, Arrays]]:
        wanted = {name: (parts or {}).get(name, ()) for name in self.names()}
        entries = {
            name: self._plain(self.tensor(name))
            for name, part in wanted.items()
            if part is not None
        }
        whole = [entry for name, entry in entries.items() if entry and not wanted[name]]
        decoded = read_entries(self.store, whole)
        for name, entry in entries.items():
            tensor, part = self.tensor(name), wanted[name]
            if entry is None:
                codes = tensor.codes
                yield tensor, codes | {"code": codes["code"][part]} if part else codes
            elif part:
                yield tensor, {"code": codes_of(read_part(self.store, entry, part))}
            else:
                yield tensor, {"code": codes_of(next(decoded))}

    def _plain(self, tensor: Tensor) -> Entry | None:
        """The entry that is the tensor as it is, if there is one."""
        name = tensor.parts["code"]
        return None if tensor.dtype is None else self.arrays[name].get(name)

    def read_text(self, file: str) -> str | None:
        data = self.archive.read_file(file)
        return decode_text(self.source / file, data) if isinstance(data, bytes) else data
