"""What a path holds: a safetensors or GGUF file, a directory of them, or something to refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jentropy.errors import InputError, MissingFileError, UnsupportedError

from . import choosing, gguf_files, safetensors
from .choosing import Choice
from .contents import CONFIGS, StoredArray, decode_text
from .faults import read_file, reading
from .gguf_files import GgufFile
from .safetensors import SafetensorsFile
from .viewing import Source

MAX_LINKED, MAX_DEPTH = 10_000, 100  # folders below links, and below each other
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSource(Source):
    """The files of a checkpoint that is not Orbax's.

    Attributes:
      root: the directory, or that of a single file.
      files: every file, as a path relative to root, sorted.
      choice: which of their arrays are the model's.
      opened: the files that those lie in.
      whole: False for a single file, alone in a directory or by its path: it may be one shard of
        several, and its archive looks like a directory's.
    """

    root: Path
    files: tuple[str, ...]
    choice: Choice
    opened: Mapping[str, SafetensorsFile | GgufFile]
    whole: bool = True

    @property
    def shown(self) -> frozenset[str]:
        """The files that hold arrays of the model."""
        return frozenset(file for part in self.choice.components for file in part.files)

    def beside(self) -> dict[str, str]:
        """Configs that lie beside a single file, which is nothing without them."""
        if self.whole:
            return {}
        texts = {name: _read(self.root / name) for name in CONFIGS}
        return {name: decode_text(self.root / name, data) for name, data in texts.items() if data}

    def arrays_in(self, file: str) -> dict[str, StoredArray]:
        return {array.name: gguf_files.native(array) for array in self.opened[file].arrays}

    def read_file(self, path: str) -> bytes | None:
        return _read(self.root / path)

    def metadata_of(self, file: str) -> Mapping[str, str]:
        opened = self.opened[file]
        return opened.metadata if isinstance(opened, SafetensorsFile) else {}


def _read(path: Path) -> bytes | None:
    return read_file(path) if path.is_file() else None


def read_file_source(path: Path, *, follow_links: bool = True) -> FileSource:
    """Reads the headers of a file of tensors, or of a directory's model files.

    Args:
      follow_links: see `walk`.

    Raises:
      MissingFileError: a part of the model is not there.
      InputError: no checkpoint, a pickle; whatever `safetensors.read` and `gguf_files.read` raise.
    """
    root, files = files_of(path, follow_links=follow_links)
    if not path.is_dir():
        _refuse_unknown_file(path)
    opened: dict[str, SafetensorsFile | GgufFile] = {}

    def names(file: str) -> list[str]:
        if file not in opened:
            opened[file] = open_weights(root / file)
        return [array.name for array in opened[file].arrays]

    choice = choosing.choose(root, files, names, lambda file: _read(root / file))
    if not path.is_dir():  # what it lacks lies in other files
        choice = replace(choice, notes=(), fault=None)
    if isinstance(choice.fault, MissingFileError):
        raise choice.fault
    if not choice.components:
        _refuse_no_checkpoint(root, files)
    return FileSource(root=root, files=files, choice=choice, opened=opened, whole=len(files) > 1)


def open_weights(path: Path) -> SafetensorsFile | GgufFile:
    """A file of tensors, by its suffix."""
    return (gguf_files if gguf_files.is_named(path.name) else safetensors).read(path)


def files_of(path: Path, *, follow_links: bool = True) -> tuple[Path, tuple[str, ...]]:
    """The directory of a source, and its files: all of them, or the one that it is."""
    if path.is_dir():
        return path, tuple(walk(path, follow_links=follow_links))
    if not follow_links and path.is_symlink():
        raise _link(path)
    return path.parent, (path.name,)


def _refuse_no_checkpoint(root: Path, files: tuple[str, ...]) -> None:
    top = [name for name in files if "/" not in name]
    for name in top:
        if Path(name).suffix.lower() in PICKLES:
            _refuse_unknown_file(root / name)
    raise InputError(
        "no checkpoint",
        file=root,
        expected="safetensors or GGUF files, or an Orbax checkpoint",
        found=", ".join(top[:4]) + (", ..." if len(top) > 4 else "") if top else "no files",
    )


def _refuse_unknown_file(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise UnsupportedError(
            "pickled weights",
            file=path,
            expected="safetensors",
            found=path.suffix,
            hint="pickles can run code; convert it with safetensors",
        )
    if not choosing.is_weights(path.name):
        raise UnsupportedError(
            "file",
            file=path,
            expected="a .safetensors or .gguf file",
            found=path.suffix or "no suffix",
        )


def walk(root: Path, *, follow_links: bool = True) -> list[str]:
    """Every file below root as sorted relative paths.

    Args:
      follow_links: whether links are read as what they lead to; otherwise one is an error.

    Raises:
      InputError: what is no file; links that lead around, or to more folders than a source has.
    """
    linked = 0

    def visit(folder: Path, above: frozenset[str]) -> Iterator[str]:
        nonlocal linked
        real = os.path.realpath(folder)
        if real in above:
            raise InputError("a link that leads around in a circle", file=folder)
        linked += real != os.path.join(os.path.realpath(root), folder.relative_to(root))
        if linked > MAX_LINKED or len(above) > MAX_DEPTH:
            raise InputError(
                "folders reached by links, and how deep they lie",
                file=folder,
                expected=f"at most {MAX_LINKED} and {MAX_DEPTH}",
                found="more",
            )
        with reading(folder):
            inside = list(folder.iterdir())
        for path in inside:
            if not follow_links and path.is_symlink():
                raise _link(path)
            with reading(path):
                is_folder, is_file = path.is_dir(), path.is_file()
            if is_folder:
                yield from visit(path, above | {real})
            elif is_file:
                yield path.relative_to(root).as_posix()
            else:
                raise InputError("not a file", file=path, expected="a regular file", found="none")

    return sorted(visit(root, frozenset()))


def _link(path: Path) -> InputError:
    return InputError("a link", file=path, expected="a file or a folder", found="a link")
