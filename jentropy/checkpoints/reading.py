"""From stored arrays to weights: the dialect, the weights that it finds, and all that is left.

Nothing is guessed. An array that the dialect does not take is a weight of its dtype's format if
that says all there is to say of it, and RAW otherwise, with a note that says why. So is one that
the dialect takes and cannot explain: a config that contradicts the arrays, a part that is missing,
a scale beside it that has no place in its format. The rest of the checkpoint is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jentropy import formats
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import Format

from .checkpoint import Tensor, Unmade
from .companions import Companions, is_scale_name, relative, stem
from .contents import Contents, StoredArray
from .dialects import DIALECTS, PLAIN
from .dialects.scaled import is_fp8
from .dialects.weight import AUXILIARY, Missing
from .unpacking import stored_weight

_FULL = ("BF16", "FP16", "FP32")  # mean what they say in any checkpoint
_SERVING = tuple(end for end in AUXILIARY if not end.endswith("g_idx"))  # that change no weight
_NOTHING = ("", "1", "1.0", "none", "null", "false")  # scales that are none, as text
_SHOWN = 3  # names in a note
_MOST = 20  # notes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a checkpoint's arrays are.

    Attributes:
      tensors: the weights, in the order of their codes in the files.
      notes: what could not be recognised, for the user.
    """

    tensors: Sequence[Tensor]
    notes: tuple[str, ...] = ()


def read(contents: Contents, recorded: Sequence[Tensor] = (), *, strict: bool = False) -> Reading:
    """Finds the weights of a checkpoint.

    Args:
      recorded: weights that were recognised when it was compressed; the rest is looked at again.
      strict: whether a weight that its dialect cannot explain is an error; otherwise it is RAW,
        with a note.

    Raises:
      InputError: if strict, a config that contradicts the arrays, a weight one of whose parts is
        missing or that is stored twice.
    """
    dialect = next(name for name, d in DIALECTS.items() if d.claims(contents))
    if dialect == PLAIN and not recorded and _are_numbers(contents.arrays.values()):
        return Reading(tensors=_plain(contents))
    weights = {t.stored["code"].array.name: t for t in recorded}
    known = weights.keys() | _used(weights)
    reasons: dict[str, str] = {}  # what keeps an array from being read, by its name
    for array in contents.arrays.values():
        if array.name in known:
            continue
        try:
            weight = _weight(dialect, contents, array)
        except InputError as error:
            if strict and _is_fault(contents, error):
                raise
            reasons[array.name] = _reason(contents, array, error)
            continue
        if weight is not None:
            weights[array.name] = replace(weight, dialect=dialect)
    for name, fault in list(_contradictions(contents, weights)):
        if strict:
            raise fault
        weights.pop(name, None)
        reasons[name] = _reason(contents, contents.arrays[name], fault)
    used = _used(weights)
    left = {n: a for n, a in contents.arrays.items() if n not in weights and n not in used}
    auxiliary = _unexplained(contents, dialect, left, reasons)
    tensors: list[Tensor] = []
    for name, array in contents.arrays.items():
        if name in weights:
            tensors.append(weights[name])
        elif name not in used or name.endswith(AUXILIARY):
            serves = name in auxiliary or name.endswith(AUXILIARY)
            tensors.append(_left_over(contents, array, reasons.get(name, ""), auxiliary=serves))
    return Reading(tensors=tuple(tensors), notes=_notes(reasons))


def _are_numbers(arrays: Collection[StoredArray]) -> bool:
    """Whether the dtypes of all arrays say all there is to say of them."""
    kinds = {(array.dtype, array.packing) for array in arrays}
    formats_of = {formats.format_of_dtype(dtype) for dtype, _ in kinds}
    return formats_of <= {*_FULL} and not any(packing for _, packing in kinds)


def _plain(contents: Contents) -> Unmade:
    """All arrays as weights of their dtypes' formats."""
    names = list(contents.arrays)

    def make(place: int) -> Tensor:
        serves = names[place].endswith(AUXILIARY)
        return _left_over(contents, contents.arrays[names[place]], "", auxiliary=serves)

    return Unmade(names, make)


def _weight(dialect: str, contents: Contents, array: StoredArray) -> Tensor | None:
    try:
        weight = DIALECTS[dialect].weight(contents, array)
    except InputError as error:
        raise contents.conflict or error from None
    if weight is not None and contents.conflict is not None:
        raise contents.conflict
    return weight


def _is_fault(contents: Contents, error: InputError) -> bool:
    """Whether an error tells of a contradiction: not of a variant that nobody knows, nor of a
    part that a single file lacks."""
    if isinstance(error, Missing):
        return contents.whole
    return not isinstance(error, UnsupportedError)


def _used(weights: Mapping[str, Tensor]) -> set[str]:
    """Names of the arrays that weights are made of."""
    parts = {leaf.array.name for w in weights.values() for leaf in w.stored.values()}
    return parts.union(a.name for w in weights.values() for a in w.settled)


def _contradictions(
    contents: Contents, weights: dict[str, Tensor]
) -> Iterator[tuple[str, InputError]]:
    """Arrays that cannot be what a dialect takes them for, seen beside all others, and why."""
    if not weights:
        return
    used = _used(weights)
    names = Counter(w.name for w in weights.values())
    names.update(n for n in contents.arrays if n not in weights and n not in used)
    loose = Companions(
        array
        for name, array in contents.arrays.items()
        if name not in used and name not in weights and not name.endswith(_SERVING)
    )
    for code, weight in list(weights.items()):
        unused = loose.named_after(contents.arrays[code])
        if names[weight.name] > 1:
            same = [c for c, w in weights.items() if w.name == weight.name]
            same += [weight.name] if weight.name in contents.arrays else []
            for name in dict.fromkeys(same):
                yield name, _fault(contents, "stored twice", weight, "one", same)
        elif unused:
            yield code, _fault(contents, "scales", weight, f"those of {weight.format}", unused)


def _fault(
    contents: Contents, what: str, weight: Tensor, expected: str, names: list[str]
) -> InputError:
    return InputError(
        what,
        file=contents.source,
        tensor=weight.name,
        expected=expected,
        found=" and ".join(dict.fromkeys(names)),
    )


def _unexplained(
    contents: Contents,
    dialect: str,
    left: Mapping[str, StoredArray],
    reasons: dict[str, str],
) -> set[str]:
    """Adds the reasons why arrays that no weight is made of are RAW.

    Returns:
      Names of the arrays that seem to serve their quantisation.
    """
    auxiliary: set[str] = set()
    if all(_is_number(array) for array in left.values()) and not reasons:
        return auxiliary
    companions = Companions(left.values())
    aside = _aside(contents)
    # Codes first: what is named like a scale may be one of theirs.
    for name, array in sorted(left.items(), key=lambda item: is_scale_name(item[0])):
        if name in auxiliary or name.endswith(AUXILIARY):
            continue
        beside = companions.suspects(array)
        if name not in reasons:
            elsewhere = aside(array)
            told = beside or elsewhere or contents.quantization or array.packing
            if not (told and _may_be_codes(array, companions)):
                continue
            reasons[name] = _why(contents, dialect, array, beside, elsewhere)
        auxiliary.update(n for n in companions.named_after(array) if n not in reasons)
    return auxiliary


def _aside(contents: Contents) -> Callable[[StoredArray], str]:
    """Says of an array where its scales seem to be that are not among the arrays; "" if nowhere."""
    stems = {stem(name): name for name in contents.aside}
    told = [
        key
        for key, text in contents.metadata.items()
        if (is_scale_name(key) or ("quant" in key.lower() and "scale" in text.lower()))
        and text.lower() not in _NOTHING
    ]

    def where(array: StoredArray) -> str:
        if name := stems.get(stem(array.name)):
            return f"its scales seem to be {relative(name, array)}, which is not the model's"
        is_told = told and is_fp8(array)
        return f"__metadata__ has {told[0]!r}, which no dialect knows" if is_told else ""

    return where


def _may_be_codes(array: StoredArray, companions: Companions) -> bool:
    """Whether an array is such that the user should know if its values are not."""
    if array.packing or is_fp8(array):
        return True
    is_narrow = array.dtype.itemsize <= 4 and array.dtype != np.bool_
    many = len(array.shape) > 1 or (len(array.shape) == 1 and companions.named_after(array))
    return is_narrow and not _is_number(array) and bool(many)


def _is_number(array: StoredArray) -> bool:
    """Whether an array's dtype says all there is to say of it, in any checkpoint."""
    return formats.format_of_dtype(array.dtype) in _FULL


def _why(
    contents: Contents, dialect: str, array: StoredArray, beside: list[str], elsewhere: str
) -> str:
    """Why an array that no dialect has taken is RAW."""
    if array.packing:
        return f"type {array.packing}, which the dialect gguf does not know"
    if contents.quantization:
        tool = contents.quant_method
        told = f"declares {tool!r}" if tool else "declares a quantisation of no known method"
        unknown = "which no dialect knows" if dialect == PLAIN else "which does not explain it"
        return f"{contents.declared_in} {told}, {unknown}"
    if not beside:
        return elsewhere
    names = relative(", ".join(beside[:_SHOWN]), array)
    return f"beside it lies {names}, and no config declares how they are quantised"


def _reason(contents: Contents, array: StoredArray, error: InputError) -> str:
    """An error in the words of a note on the array."""
    if isinstance(error, Missing) and not contents.whole:
        return "their scales are not here"
    where = error.tensor if error.tensor in contents.arrays and error.tensor != array.name else ""
    why = "" if error.expected is None else f": expected {error.expected}, found {error.found}"
    return relative(f"{where}{': ' if where else ''}{error.what}{why}", array)


def _left_over(contents: Contents, array: StoredArray, reason: str, *, auxiliary: bool) -> Tensor:
    """An array as a weight of its dtype's format, or RAW."""
    number_format = formats.plain_format(array.dtype)
    if reason or auxiliary or (contents.quantization and not _is_number(array)):
        number_format = Format(name=formats.RAW, element=formats.raw_element(array.dtype))
    return Tensor(
        name=array.name,
        weight=stored_weight(number_format, array.shape, {"code": array}),
        dialect=PLAIN,
        auxiliary=auxiliary,
        note=reason,
    )


def _notes(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """What the user should know, tensors with the same reason together."""
    grouped: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        grouped.setdefault(reason, []).append(name)
    notes = [f"{_some(names)}: kept as RAW codes ({why})" for why, names in grouped.items()]
    rest = sum(map(len, list(grouped.values())[_MOST:]))
    more = [f"{rest} more tensors: kept as RAW codes, for reasons that are noted on each"]
    return (*notes[:_MOST], *(more if rest else []))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
