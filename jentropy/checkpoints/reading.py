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
from jentropy.errors import InputError
from jentropy.formats import GROUP_INDEX, ElementFormat, Format

from .checkpoint import Tensor
from .contents import Contents, StoredArray
from .dialects import DIALECTS, plain
from .dialects.weight import Missing, Weight

_FULL = (formats.BF16, formats.FP16, formats.FP32)  # mean what they say in any checkpoint
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


def read(contents: Contents) -> Reading:
    """Finds the weights of a checkpoint; no array is read.

    Raises:
      InputError: a config that contradicts the arrays, a weight one of whose parts is missing.
    """
    dialect = next(d for d in DIALECTS.values() if d.claims(contents))
    weights: dict[str, Weight] = {}  # by the name of the array of their codes
    missing: list[str] = []
    for array in contents.arrays.values():
        try:
            weight = dialect.weight(contents, array)
        except Missing:
            if contents.whole:
                raise
            missing.append(array.name)
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
        elif name not in used or name.endswith(dialect.AUXILIARY):
            tensor = _left_over(contents, array, dialect)
            tensors.append(tensor)
            is_raw = tensor.format == formats.RAW and name not in missing
            if is_raw and _looks_quantised(contents, array, tensor):
                unknown.append(name)
    _refuse_duplicates(contents, tensors)
    return Reading(
        tensors=tuple(tensors),
        elements=elements,
        notes=_notes(contents, dialect, unknown, missing),
    )


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
    auxiliary = array.name.endswith(dialect.AUXILIARY)
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
    stem = name.removesuffix(".weight")
    endings = ("_scale", "_scale_inv", "_scales", ".scale", ".scales", "_scale_2")
    return any(f"{base}{end}" in contents.arrays for base in (name, stem) for end in endings)


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
    contents: Contents, dialect: ModuleType, unknown: list[str], missing: list[str]
) -> tuple[str, ...]:
    notes = []
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
        notes.append(f"{_some(missing)}: kept as RAW codes, their scales lie in other files")
    return tuple(notes)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
