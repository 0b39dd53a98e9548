"""What a directory, or its archive, shows: the weights of its components under one set of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jentropy.containers.tensor import first_twice
from jentropy.errors import InputError

from . import reading
from .checkpoint import Tensor, Unmade
from .choosing import Choice, Component, is_gguf
from .contents import Contents, StoredArray, read_contents


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The weights of all components.

    Attributes:
      tensors: names, and those of their parts, begin with the component's prefix.
      config: of the one component that is the directory itself, if it is that.
      notes: what could not be recognised or was left out.
    """

    tensors: Sequence[Tensor]
    config: Mapping[str, Any] | None
    notes: tuple[str, ...]

    @property
    def quantised(self) -> Sequence[Tensor]:
        """Those that may have parameters."""
        return () if isinstance(self.tensors, Unmade) else self.tensors


class Source:
    """Where weights are read: the files of a checkpoint, what Orbax wrote, or an archive of either.

    Attributes:
      root: the directory, for messages.
      choice: which arrays are the model's.
      whole: False for a single file, which may be one shard of several.
    """

    root: Path
    choice: Choice
    whole: bool

    def arrays_in(self, file: str) -> Mapping[str, StoredArray]:
        """The arrays of a file of tensors, by name."""
        raise NotImplementedError

    def read_file(self, path: str) -> bytes | str | None:
        """Another file, None if there is none."""
        raise NotImplementedError

    def metadata_of(self, file: str) -> Mapping[str, str]:
        """`__metadata__` of a file of tensors, if it has that."""
        return {}

    def recorded(self, component: Component, arrays: Mapping[str, StoredArray]) -> list[Tensor]:
        """The weights that were recognised when the component was compressed."""
        return []

    def view(self, *, strict: bool = False, lenient: bool = False) -> View:
        """The weights of every component.

        Args:
          strict: see `reading.read`.
          lenient: whether what keeps it from being opened is a note: its bytes are sound.

        Raises:
          InputError: it cannot be opened as a checkpoint; see `reading.read`.
        """
        notes, fault = list(self.choice.notes), self.choice.fault
        if fault and not lenient:
            raise fault
        notes += [str(fault)] if fault else []
        tensors: Sequence[Tensor] = ()
        config = None
        for component in self.choice.components:
            try:
                contents = self._contents(component)
                recorded = self.recorded(component, contents.arrays)
                recognised = reading.read(contents, recorded, strict=strict)
            except InputError as error:
                if not lenient:
                    raise
                notes.append(str(error))
                contents = self._contents(component, configs=False)
                recognised = reading.read(contents, strict=False)
            if not component.prefix:
                config = contents.config
            if component.prefix or tensors:
                inside = (_within(component.prefix, tensor) for tensor in recognised.tensors)
                tensors = [*tensors, *inside]
            else:
                tensors = recognised.tensors
            where = f"{component.prefix}: " if component.prefix else ""
            notes += [where + note for note in recognised.notes]
        is_one = len(self.choice.components) < 2  # whose names are the keys of a dict
        twice = None if is_one else first_twice(tensor.name for tensor in tensors)
        if twice is not None and not lenient:
            raise InputError("two components have a tensor of this name", tensor=twice)
        return View(tensors=tensors, config=config, notes=tuple(notes))

    def _contents(self, component: Component, *, configs: bool = True) -> Contents:
        """What a dialect reads of a component, with the configs that lie beside it or without."""
        configs = configs and not is_gguf(component)
        arrays, metadata = list[StoredArray](), dict[str, str]()
        for file, names in component.files.items():
            inside = self.arrays_in(file)
            arrays += [inside[name] for name in names]
            metadata |= self.metadata_of(file) if configs else {}
        return read_contents(
            self.root / component.folder,
            arrays,
            lambda name: self.read_file(component.folder + name) if configs else None,
            metadata,
            whole=self.whole,
            aside=component.aside,
        )


def _within(prefix: str, tensor: Tensor) -> Tensor:
    """A tensor of a component under its name among all."""
    return replace(tensor, name=prefix + tensor.name, prefix=prefix) if prefix else tensor
