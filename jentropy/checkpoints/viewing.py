"""What a directory, or its archive, shows: the weights of its components under one set of names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jentropy.containers.tensor import first_twice
from jentropy.errors import InputError
from jentropy.formats import ElementFormat

from . import reading
from .checkpoint import Tensor
from .choosing import Choice, Component
from .contents import Contents

# Of a component, with the configs that lie beside it or without.
ContentsOf = Callable[[Component, bool], Contents]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The weights of all components.

    Attributes:
      tensors: names, and those of their parts, begin with the component's prefix.
      elements: element format of the arrays that weights are made of, by file and name in it.
      config: of the one component that is the directory itself, if it is that.
      notes: what could not be recognised or was left out.
    """

    tensors: tuple[Tensor, ...]
    elements: Mapping[str, Mapping[str, ElementFormat]]
    config: Mapping[str, Any] | None
    notes: tuple[str, ...]


def view(
    choice: Choice, contents_of: ContentsOf, *, strict: bool = False, lenient: bool = False
) -> View:
    """Reads every component.

    Args:
      contents_of: gives the contents of a component.
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
    elements: dict[str, dict[str, ElementFormat]] = {}
    config = None
    for component in choice.components:
        try:
            contents = contents_of(component, True)
            found = reading.read(contents, strict=strict)
        except InputError as error:
            if not lenient:
                raise
            notes.append(str(error))
            contents = contents_of(component, False)
            found = reading.read(contents, strict=False)
        if not component.prefix:
            config = contents.config
        tensors += [_named(tensor, component.prefix) for tensor in found.tensors]
        where = f"{component.prefix}: " if component.prefix else ""
        notes += [where + note for note in found.notes]
        for file, names in component.files.items():
            elements[file] = {n: found.elements[n] for n in names if n in found.elements}
    twice = first_twice(tensor.name for tensor in tensors)
    if twice is not None and not lenient:
        raise InputError("two components have a tensor of this name", tensor=twice)
    return View(tensors=tuple(tensors), elements=elements, config=config, notes=tuple(notes))


def _named(tensor: Tensor, prefix: str) -> Tensor:
    if not prefix:
        return tensor
    parts = {key: prefix + name for key, name in tensor.parts.items()}
    return dataclasses.replace(tensor, name=prefix + tensor.name, parts=parts)
