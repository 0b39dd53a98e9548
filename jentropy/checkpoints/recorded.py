"""What is known of weights without looking for it: what the index tells, and its tree.

A record says which arrays a weight is made of and how its codes lie in them, so that opening needs
neither its config nor its dialect: it is read as it was recorded. What was RAW, or plain, is not
recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jentropy.errors import CorruptError, InputError, UnsupportedError
from jentropy.formats import GROUP_INDEX, Format, QuantizedTensor

from . import structure
from .checkpoint import Tensor
from .contents import StoredArray
from .dialects import DIALECTS, PLAIN
from .entries import Index, PartEntry, WeightEntry
from .unpacking import UNPACKINGS, Groups, Stored, Unpacking, Whole, stored_weight

# Numbers of tensors by the file and name of the array that they are, or are the first field of.
Numbers = Mapping[tuple[Path, str], int]


def record(
    tensors: Iterable[Tensor], numbers: Numbers
) -> tuple[tuple[Format, ...], tuple[WeightEntry, ...]]:
    """What the index tells of the weights that a dialect has recognised.

    Args:
      numbers: an array that is not there (it is another one under a second name) makes its weight
        none of them.

    Returns:
      Their formats, and the weights, which have numbers of them.
    """
    formats: dict[Format, int] = {}
    weights = []
    for tensor in tensors:
        parts = {
            key: _part(number, leaf.unpacking)
            for key, leaf in tensor.stored.items()
            if (number := numbers.get((leaf.array.file, leaf.array.name))) is not None
        }
        if tensor.number_format.is_plain or parts.keys() != tensor.stored.keys():
            continue
        settled = (numbers.get((array.file, array.name)) for array in tensor.settled)
        weights.append(
            WeightEntry(
                name=tensor.name.removeprefix(tensor.prefix),
                dialect=tensor.dialect,
                version=DIALECTS[tensor.dialect].version,
                format=formats.setdefault(tensor.number_format, len(formats)),
                shape=tensor.shape,
                parts=parts,
                settled=tuple(number for number in settled if number is not None),
            )
        )
    return tuple(formats), tuple(weights)


def _part(number: int, unpacking: Unpacking) -> PartEntry:
    name = next(name for name, (kind, _) in UNPACKINGS.items() if isinstance(unpacking, kind))
    return PartEntry(array=number, unpack=name, arguments=UNPACKINGS[name][1].write(unpacking))


def _unpacking(part: PartEntry) -> Unpacking:
    if part.unpack not in UNPACKINGS:
        known = " or ".join(UNPACKINGS)
        raise UnsupportedError("unpacking", expected=known, found=f"{part.unpack!r:.40}")
    kind = UNPACKINGS[part.unpack][1]
    unpacking = kind.read(dict(part.arguments))
    if kind.write(unpacking) != part.arguments:
        raise CorruptError("options", expected="some that it has", found=f"{part.arguments!r:.60}")
    return unpacking


def recall(index: Index, arrays: Mapping[int, StoredArray], file: Path) -> Iterator[Tensor]:
    """The recorded weights that are made of some arrays, unread.

    Args:
      arrays: by the number of the tensor that each is, or has as its first field. A weight that
        needs another one is left out.
      file: the index, for messages.

    Raises:
      CorruptError: a record that contradicts the arrays or itself.
      UnsupportedError: a dialect, or a version of one, that this release does not know.
    """
    for weight in index.weights:
        if not {part.array for part in weight.parts.values()} <= arrays.keys():
            continue
        known = DIALECTS.get(weight.dialect)
        if known is None or weight.version > known.version:
            raise UnsupportedError(
                "dialect of a recorded weight",
                file=file,
                tensor=weight.name,
                expected=" or ".join(DIALECTS)
                if known is None
                else f"{weight.dialect} of version {known.version} or lower",
                found=f"{weight.dialect} of version {weight.version}",
                hint="a newer jentropy wrote it",
            )
        with _told_of(weight.name, file):
            stored = {
                key: (arrays[part.array], _unpacking(part)) for key, part in weight.parts.items()
            }
            codes = stored_weight(index.formats[weight.format], weight.shape, stored)
        settled = tuple(arrays[number] for number in weight.settled if number in arrays)
        yield Tensor(name=weight.name, weight=codes, dialect=weight.dialect, settled=settled)


def of_tree(tree: Any, arrays: Mapping[int, StoredArray], file: Path) -> Iterator[Tensor]:
    """The quantised weights of a pytree's structure, unread.

    Args:
      arrays, file: see `recall`.

    Raises:
      CorruptError: codes that are not what their format says.
    """
    for _, node in structure.walk(tree):
        if not isinstance(node, QuantizedTensor):
            continue
        leaves = node.codes.items()
        inside = {key: arrays[at.number] for key, at in leaves if isinstance(at, structure.Stored)}
        if "code" not in inside:
            raise CorruptError("codes of the tree", file=file, expected="arrays", found="others")
        stored: dict[str, Stored] = {key: (a, Whole(coded=True)) for key, a in inside.items()}
        if GROUP_INDEX in inside:
            others = (a.shape for key, a in inside.items() if key not in ("code", GROUP_INDEX))
            groups = max((math.prod(shape[-1:]) for shape in others), default=1)
            stored[GROUP_INDEX] = inside[GROUP_INDEX], Groups(groups=groups)
        name = inside["code"].name.removesuffix(".codes.code")
        with _told_of(name, file):
            shape = node.number_format.shape(inside["code"].shape)
            weight = stored_weight(node.number_format, shape, stored)
        yield Tensor(name=name, weight=weight, dialect=PLAIN)


@contextmanager
def _told_of(name: str, file: Path) -> Iterator[None]:
    """Makes an array that is no such thing a fault of the index, which tells of it."""
    try:
        yield
    except InputError as error:
        kind = UnsupportedError if isinstance(error, UnsupportedError) else CorruptError
        raise kind(
            f"recorded weight: {error.what} of {error.tensor or 'it'}",
            file=file,
            tensor=name,
            expected=error.expected,
            found=error.found,
        ) from error
