"""What a directory, or its archive, shows: the weights of its components under one set of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jentropy.containers.tensor import first_twice
from jentropy.errors import InputError

from . import reading
from .checkpoint import Tensor
from .choosing import Choice, Component
from .contents import Contents

# Of a component, with the configs that lie beside it or without.
ContentsOf = Callable[[Component, bool], Contents]
# Of a component and its contents: the weights that were recognised when it was compressed.
RecordedOf = Callable[[Component, Contents], Sequence[Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The weights of all components.

    Attributes:
      tensors: names, and those of their parts, begin with the component's prefix.
      config: of the one component that is the directory itself, if it is that.
      notes: what could not be recognised or was left out.
    """

    tensors: tuple[Tensor, ...]
    config: Mapping[str, Any] | None
    notes: tuple[str, ...]


def view(
    choice: Choice,
    contents_of: ContentsOf,
    recorded_of: RecordedOf = lambda component, contents: (),
    *,
    strict: bool = False,
    lenient: bool = False,
) -> View:
    """Reads every component.

    Args:
      contents_of: gives the contents of a component.
      recorded_of: gives the weights that are known before they are looked for.
      strict: see `reading.read`.
      lenient: whether what keeps the directory from being opened is a note: its bytes are sound.

    Raises:
      InputError: the directory cannot be opened as a checkpoint; see `reading.read`.
    """
    notes = list(choice.notes)
    if choice.fault:
        if not lenient:
            raise choice.fault
        notes.append(str(choice.fault))
    tensors: list[Tensor] = []
    config = None
    for component in choice.components:
        try:
            contents = contents_of(component, True)
            found = reading.read(contents, recorded_of(component, contents), strict=strict)
        except InputError as error:
            if not lenient:
                raise
            notes.append(str(error))
            contents = contents_of(component, False)
            found = reading.read(contents, strict=False)
        if not component.prefix:
            config = contents.config
        tensors += [_within(component.prefix, tensor) for tensor in found.tensors]
        where = f"{component.prefix}: " if component.prefix else ""
        notes += [where + note for note in found.notes]
    twice = first_twice(tensor.name for tensor in tensors)
    if twice is not None and not lenient:
        raise InputError("two components have a tensor of this name", tensor=twice)
    return View(tensors=tuple(tensors), config=config, notes=tuple(notes))


def _within(prefix: str, tensor: Tensor) -> Tensor:
    """A tensor of a component under its name among all."""
    return replace(tensor, name=prefix + tensor.name, prefix=prefix) if prefix else tensor
