"""Which arrays of a directory are its model's, among all that its files hold.

The same rules read a directory and its archive, so that both show the same tensors:

1. A directory's model is its own weight files. If `model_index.json` says that it is a pipeline, or
   it has none of its own, every folder below that has weight files is a *component*; names of its
   tensors begin with the folder's.
2. In a folder, safetensors files come before GGUF files. An index decides which of its files'
   arrays are the model's; `X.safetensors` takes the place of an index of X whose files are gone.
3. Without an index it is `model.safetensors`, or else all files. Of files that hold the same names,
   `X` is the model and `X.fp16`, `X-000002`, `X_ema` are its variants. Where no file is the one
   that others vary, the directory is no one checkpoint. A projector of GGUF files goes with them,
   unless there are several.

What is not the model's is in the archive all the same. A file that an index, or the number of parts
in a name, tells of and that is not here is a `MissingFileError`: no source is read without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from jentropy.containers.tensor import first_twice
from jentropy.errors import InputError, MissingFileError

from . import gguf_files, indices, safetensors
from .companions import is_scale_name
from .indices import some, varies

PIPELINE = "model_index.json"
PROJECTOR = "mmproj"  # in the names of GGUF files that go with a model's own
MODEL = f"model{safetensors.SUFFIX}"  # what transformers names a model's file
TREE = ""  # stands among a component's files for a tree of arrays, which is none
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")

Names = Callable[[str], Sequence[str]]  # of the arrays in a file, in order
ReadBytes = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A model among the files of a directory.

    Attributes:
      folder: where its configs lie: "", or a path that ends in a slash.
      prefix: what names of its tensors begin with: "", or a path that ends in a slash.
      files: its files, by path, and the names of the arrays in each that it shows, in order.
      aside: names of scales in its folder that it does not show, where no weights lie with them.
    """

    folder: str = ""
    prefix: str = ""
    files: Mapping[str, tuple[str, ...]]
    aside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a directory shows.

    Attributes:
      components: one, or those of a pipeline.
      notes: what was left out, for the user.
      fault: why the directory cannot be opened as a checkpoint, if it cannot. `components` then
        holds all that it has, for the archive.
    """

    components: tuple[Component, ...]
    notes: tuple[str, ...] = ()
    fault: InputError | None = None


def of_tree(names: Iterable[str], notes: Iterable[str] = ()) -> Choice:
    """What a tree of arrays shows: all of them."""
    return Choice(components=(Component(files={TREE: tuple(names)}),), notes=tuple(notes))


def is_weights(name: str) -> bool:
    """Whether a file's name is that of a file of tensors."""
    return safetensors.is_named(name) or gguf_files.is_named(name)


def is_gguf(component: Component) -> bool:
    """Whether a component is GGUF, which needs no configs."""
    return any(map(gguf_files.is_named, component.files))


def choose(root: Path, files: Sequence[str], names: Names, read: ReadBytes) -> Choice:
    """Chooses what a directory shows.

    Args:
      root: the directory, for messages.
      files: all of its files, as relative paths with slashes.
      names: gives the names in a file of tensors.
      read: gives a file's bytes.

    Raises:
      InputError: whatever `names` raises of a file that the model is made of.
    """
    folders: dict[str, list[str]] = {}
    for file in files:
        folder, slash, name = file.rpartition("/")
        if is_weights(name) or indices.PATTERN.fullmatch(name):
            folders.setdefault(folder + slash, []).append(name)
    below = [folder for folder in folders if folder and not _is_hidden(folder)]
    if "" in folders and not (PIPELINE in files and below):
        below = [""]
    here = frozenset(files)
    choices = [_Folder(root, folder, here, folders[folder], names, read) for folder in below]
    components = tuple(folder.aside(c) for folder in choices for c in folder.components())
    shown = {file for component in components for file in component.files}
    notes = [note for folder in choices for note in folder.notes]
    if beside := [file for file in files if is_weights(file) and file not in shown]:
        notes.append(f"{some(beside)}: beside the model, kept and not shown (open it by its path)")
    faults = [folder.fault for folder in choices if folder.fault]
    faults.sort(key=lambda fault: not isinstance(fault, MissingFileError))
    return Choice(components=components, notes=tuple(notes), fault=faults[0] if faults else None)


def _is_hidden(folder: str) -> bool:
    return any(part.startswith(".") for part in folder.split("/"))


class _Folder:
    """The choice in one folder."""

    def __init__(
        self,
        root: Path,
        folder: str,
        files: frozenset[str],
        inside: Sequence[str],
        names: Names,
        read: ReadBytes,
    ):
        self.root, self.folder = root, folder
        self.notes: list[str] = []
        self.fault: InputError | None = None
        self._files = files
        self._inside = inside
        self._names, self._read = names, read

    def components(self) -> Iterable[Component]:
        """The folder's model; several if it cannot be told which one that is."""
        if component := self._by_index():
            return [component]
        weights = sorted(filter(safetensors.is_named, self._inside))
        weights = weights or sorted(filter(gguf_files.is_named, self._inside))
        if MODEL in weights:
            weights = [MODEL]
        projectors = [name for name in weights if PROJECTOR in name.lower()]
        if 1 < len(projectors) < len(weights):  # the same one in several precisions
            weights = [name for name in weights if name not in projectors]
        return self._by_file(weights) if weights else []

    def aside(self, component: Component) -> Component:
        """A component with the scales that lie aside from it."""
        scales: list[str] = []
        for name in self._inside:
            file = self.folder + name
            if not safetensors.is_named(name):
                continue
            shown = frozenset(component.files.get(file, ()))
            with suppress(InputError):  # not the model's: kept as it is
                hidden = [t for t in self._names(file) if t not in shown]
                scales += hidden if all(map(is_scale_name, hidden)) else []
        return replace(component, aside=tuple(scales)) if scales else component

    def _fail(self, error: InputError) -> None:
        self.fault = self.fault or error

    def _by_index(self) -> Component | None:
        """What the index that decides points to; None if there is none."""
        folder = self.root / self.folder
        try:
            name = indices.find(self._inside, folder)
            if name is None:
                return None
            weight_map = indices.read_weight_map(
                folder / name, self._read(self.folder + name) or b""
            )
        except InputError as error:
            self._fail(error)
            return None
        pointed = indices.follow(
            folder / name,
            weight_map,
            self._inside,
            is_here=lambda shard: self.folder + shard in self._files,
            names=lambda shard: self._names(self.folder + shard),
        )
        self.notes += [self.folder + note for note in pointed.notes]
        if pointed.fault:
            self._fail(pointed.fault)
        if not pointed.files:
            return None
        files = {self.folder + shard: names for shard, names in pointed.files.items()}
        return Component(folder=self.folder, prefix=self.folder, files=files)

    def _by_file(self, weights: Sequence[str]) -> list[Component]:
        """What files hold that no index tells of."""
        sets: dict[str, list[str]] = {}
        for name in weights:
            stem = Path(name).stem
            match = _SHARD.fullmatch(stem)
            sets.setdefault(match["stem"] if match else stem, []).append(name)
        inside = {
            stem: {self.folder + n: tuple(self._names(self.folder + n)) for n in names}
            for stem, names in sets.items()
        }
        kept: list[str] = []
        twice: tuple[str, str, str] | None = None  # a name, and the files that have it
        owner: dict[str, tuple[str, str]] = {}  # set and file of every name
        for stem in sorted(inside, key=lambda s: (len(s), s)):
            there = (t for names in inside[stem].values() for t in names if t in owner)
            if any(varies(stem, base) for base in {owner[t][0] for t in there}):
                continue
            kept.append(stem)
            for file, names in inside[stem].items():
                again = next((t for t in names if t in owner), None)
                if again is not None:
                    twice = twice or (again, file, owner[again][1])
                owner.update(dict.fromkeys((t for t in names if t not in owner), (stem, file)))
        for stem in kept:
            self._expect_whole(sets[stem])
        if twice is None:
            files = {file: names for stem in sorted(kept) for file, names in inside[stem].items()}
            return [Component(folder=self.folder, prefix=self.folder, files=files)]
        tensor, file, other = twice
        self._fail(
            InputError(
                "tensor in two files",
                file=self.root / file,
                tensor=tensor,
                expected="one GGUF file" if gguf_files.is_named(file) else "one file",
                found=f"another in {other}",
                hint="open one of the files by its path",
            )
        )
        return [part for stem in sorted(kept) for part in self._apart(stem, inside[stem])]

    def _apart(self, stem: str, files: Mapping[str, tuple[str, ...]]) -> list[Component]:
        """A file in parts as a component by itself; its parts, if they hold the same names."""
        is_one = first_twice(name for names in files.values() for name in names) is None
        parts = {f"{self.folder}{stem}/": files} if is_one else {}
        parts |= {} if is_one else {f"{f.rpartition('.')[0]}/": {f: n} for f, n in files.items()}
        return [Component(folder=self.folder, prefix=p, files=f) for p, f in parts.items()]

    def _expect_whole(self, names: Sequence[str]) -> None:
        """Fails where parts of a file in parts are not here."""
        matches = [m for name in names if (m := _SHARD.fullmatch(Path(name).stem))]
        if not matches:
            return
        count, present = int(matches[0]["count"]), {int(m["number"]) for m in matches}
        if lost := [n for n in range(1, count + 1) if n not in present]:
            stem, suffix = matches[0]["stem"], Path(names[0]).suffix
            parts = some(f"{stem}-{n:05d}-of-{count:05d}{suffix}" for n in lost)
            self._fail(indices.missing(parts, self.root / self.folder))
