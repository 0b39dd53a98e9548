"""From stored arrays to weights: the dialect, the weights that it finds, and all that is left.

Nothing is guessed. An array that the dialect does not take is a weight of its dtype's format if
that says all there is to say of it, and RAW otherwise, with a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from jentropy import formats
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import GROUP_INDEX, ElementFormat, Format

from .checkpoint import Tensor
from .contents import Contents, StoredArray
from .dialects import DIALECTS, plain
from .dialects.weight import AUXILIARY, Missing, Weight

_FULL = (formats.BF16, formats.FP16, formats.FP32)  # mean what they say in any checkpoint
# How codes and scales are named where no config tells; to warn of them, not to read them.
_CODES = (".weight", "weight", "_packed", "qweight", "_qdata")
_SCALES = ("_scale", "_scale_inv", "_scales", ".scale", ".scales", "scales", "_scale_2")
_SHOWN = 3  # names in a note


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a checkpoint's arrays are.

    Attributes:
      tensors: the weights, in the order of their codes in the files.
      elements: element format of every stored array that a weight is made of, by the array's name.
      notes: what could not be recognised, for the user.
    """

    tensors: tuple[Tensor, ...]
    elements: Mapping[str, ElementFormat]
    notes: tuple[str, ...]


def read(contents: Contents, *, strict: bool = True) -> Reading:
    """Finds the weights of a checkpoint; no array is read.

    Args:
      strict: whether a config that contradicts the arrays is an error; otherwise what it says is
        left out, with a note.

    Raises:
      InputError: a config that contradicts the arrays, a weight one of whose parts is missing.
    """
    dialect = next(d for d in DIALECTS.values() if d.claims(contents))
    weights: dict[str, Weight] = {}  # by the name of the array of their codes
    missing: list[str] = []
    unread: dict[str, list[str]] = {}  # names by what kept them from being read
    for array in contents.arrays.values():
        try:
            weight = _weight(dialect, contents, array)
        except Missing:
            if contents.whole and strict:
                raise
            missing.append(array.name)
            continue
        except InputError as error:
            if strict and not isinstance(error, UnsupportedError):
                raise
            found = "" if error.expected is None else f": expected {error.expected}"
            unread.setdefault(f"{error.what}{found}, found {error.found}", []).append(array.name)
            continue
        if weight is not None:
            weights[array.name] = weight
    used = {part.array.name for w in weights.values() for part in w.parts.values()}
    elements = {
        part.array.name: part.element
        for w in weights.values()
        for key, part in w.parts.items()
        if key != GROUP_INDEX
    }
    tensors: list[Tensor] = []
    unknown: list[str] = []
    for name, array in contents.arrays.items():
        if name in weights:
            tensors.append(_tensor(weights[name], dialect.NAME))
        elif name not in used or name.endswith(AUXILIARY):
            tensor = _left_over(contents, array, dialect)
            tensors.append(tensor)
            known = {*missing, *(n for names in unread.values() for n in names)}
            is_raw = tensor.format == formats.RAW and name not in known
            if is_raw and _looks_quantised(contents, array, tensor):
                unknown.append(name)
    _refuse_duplicates(contents, tensors)
    return Reading(
        tensors=tuple(tensors),
        elements=elements,
        notes=_notes(contents, dialect, unknown, missing, unread),
    )


def _weight(dialect: ModuleType, contents: Contents, array: StoredArray) -> Weight | None:
    try:
        return dialect.weight(contents, array)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        # A config of the wrong types, or shapes that nobody thought of.
        raise InputError(
            f"dialect {dialect.NAME} cannot read it: {type(error).__name__}: {error}",
            file=array.file,
            tensor=array.name,
        ) from error


def plain_tensor(name: str, array: StoredArray) -> Tensor:
    """An array as a weight of its dtype's format."""
    number_format = formats.plain_format(array.dtype)
    return Tensor(
        name=name,
        dialect=plain.NAME,
        shape=array.shape,
        dtype=array.dtype,
        number_format=number_format,
        parts={"code": name},
        read=lambda: {"code": formats.codes_of(array.read())},
    )


def _tensor(weight: Weight, dialect: str) -> Tensor:
    def read_parts() -> dict[str, np.ndarray]:
        return {key: part.read() for key, part in weight.parts.items()}

    return Tensor(
        name=weight.name,
        dialect=dialect,
        shape=weight.shape,
        dtype=None,
        number_format=weight.format,
        parts={key: part.array.name for key, part in weight.parts.items()},
        read=read_parts,
    )


def _left_over(contents: Contents, array: StoredArray, dialect: ModuleType) -> Tensor:
    tensor = plain_tensor(array.name, array)
    auxiliary = array.name.endswith(AUXILIARY)
    known = tensor.number_format.element in _FULL or not (
        contents.quantization or _has_scale(contents, array.name)
    )
    if auxiliary or not known:
        raw = Format(name=formats.RAW, element=formats.raw_element(array.dtype))
        return tensor.as_raw(raw, auxiliary=auxiliary)
    return tensor


def _looks_quantised(contents: Contents, array: StoredArray, tensor: Tensor) -> bool:
    """Whether a RAW tensor may hold packed weights, so that the user should know of it."""
    if array.packing:
        return True
    told = contents.quantization is not None or _has_scale(contents, array.name)
    is_matrix = len(array.shape) > 1 and array.dtype.itemsize <= 4 and array.dtype != np.bool_
    return told and is_matrix and not tensor.auxiliary


def _has_scale(contents: Contents, name: str) -> bool:
    stems = {name, *(name.removesuffix(end) for end in _CODES if name.endswith(end))}
    return any(f"{stem}{end}" in contents.arrays for stem in stems for end in _SCALES)


def _refuse_duplicates(contents: Contents, tensors: list[Tensor]) -> None:
    seen: dict[str, Tensor] = {}
    for tensor in tensors:
        if tensor.name in seen:
            raise InputError(
                "weight stored twice",
                file=contents.source,
                tensor=tensor.name,
                expected="one",
                found=f"{seen[tensor.name].parts['code']} and {tensor.parts['code']}",
            )
        seen[tensor.name] = tensor


def _notes(
    contents: Contents,
    dialect: ModuleType,
    unknown: list[str],
    missing: list[str],
    unread: Mapping[str, list[str]],
) -> tuple[str, ...]:
    notes = [f"{_some(names)}: kept as RAW codes ({why})" for why, names in unread.items()]
    if unknown:
        why = "no config declares how they are quantised"
        packings = sorted({contents.arrays[name].packing for name in unknown} - {""})
        if packings:
            why = f"type {', '.join(packings)}, which the dialect gguf does not know"
        if contents.quantization:
            why = f"{contents.declared_in} declares {contents.quant_method!r}"
            if dialect is plain:
                why += ", which no dialect knows"
        notes.append(f"{_some(unknown)}: kept as RAW codes, values unknown ({why})")
    if missing:
        notes.append(f"{_some(missing)}: kept as RAW codes, their scales are not here")
    return tuple(notes)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
