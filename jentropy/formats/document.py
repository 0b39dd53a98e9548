"""A number format as plain data for JSON, and back.

    {"name": text, "element": element, "parameters": [parameter, ...]}
    parameter  {"name": text, "field": text, "element": element, "block": [integer, ...] or null,
                "role": scale | divisor | zero_point | offset, "of": text}
    element    a name in ELEMENTS, or all that there is to say of another one:
               {"name": text, "dtype": text, "fields": {text: bits, ...}, "bias": integer,
                "excess": integer}

Keys whose value is the usual one (no parameters, a scale, of the weight, no bias, no excess) are
left out. Reading trusts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jentropy.errors import CorruptError, UnsupportedError

from . import ELEMENTS
from .element import ElementFormat, Field
from .format import Format, Parameter, Role

LARGEST = 1 << 63  # no block is larger
_ROLES = {role.name.lower(): role for role in Role}


def to_document(number_format: Format) -> dict[str, Any]:
    """What JSON says of a number format.

    Args:
      number_format: any, of elements in `ELEMENTS` or others.

    Returns:
      Dicts, lists, texts and integers, from which `from_document` makes an equal format.

    Example:
      >>> from jentropy.formats import MXFP4
      >>> document = to_document(MXFP4)
      >>> document["element"], document["parameters"][0]["block"]
      ('FP4_E2M1', [32])
      >>> from_document(document) == MXFP4
      True
    """
    parameters = [
        {
            "name": p.name,
            "field": p.field,
            "element": _element_document(p.element),
            "block": None if p.block is None else list(p.block),
            **({} if p.role is Role.SCALE else {"role": p.role.name.lower()}),
            **({} if p.of is None else {"of": p.of}),
        }
        for p in number_format.parameters
    ]
    return {
        "name": number_format.name,
        "element": _element_document(number_format.element),
        **({"parameters": parameters} if parameters else {}),
    }


def _element_document(element: ElementFormat) -> str | dict[str, Any]:
    if ELEMENTS.get(element.name) == element:
        return element.name
    return {
        "name": element.name,
        "dtype": element.dtype.name,
        "fields": {f.name: f.bits for f in element.fields},
        **({} if element.bias is None else {"bias": element.bias}),
        **({"excess": element.excess} if element.excess else {}),
    }


def from_document(document: Any) -> Format:
    """The number format that a document tells of.

    Args:
      document: parsed JSON, of any kind.

    Returns:
      The format; its elements are those of `ELEMENTS` where they have their names.

    Raises:
      CorruptError: it is no such document, or contradicts itself.
      UnsupportedError: an element or a role that this release does not know.
    """
    parameters = tuple(_parameter(p) for p in _get(document, "parameters", list, []))
    name, element = _get(document, "name", str), _element(_get(document, "element", str | dict))
    try:
        return Format(name=name, element=element, parameters=parameters)
    except ValueError as error:
        raise CorruptError(f"number format: {error}") from error


def _parameter(document: Any) -> Parameter:
    role, block = _get(document, "role", str, "scale"), _get(document, "block", list | None)
    if role not in _ROLES:
        raise UnsupportedError("role of a parameter", expected=" or ".join(_ROLES), found=role)
    if not all(type(n) is int and 0 <= n < LARGEST for n in block or ()):
        raise CorruptError("number format: block", expected="sizes", found=f"{block!r:.60}")
    return Parameter(
        name=_get(document, "name", str),
        field=_get(document, "field", str),
        element=_element(_get(document, "element", str | dict)),
        block=None if block is None else tuple(block),
        role=_ROLES[role],
        of=_get(document, "of", str | None, None),
    )


def _element(document: str | Mapping[str, Any]) -> ElementFormat:
    if isinstance(document, str):
        if document not in ELEMENTS:
            known = " or ".join(ELEMENTS)
            raise UnsupportedError("element format", expected=known, found=f"{document!r:.60}")
        return ELEMENTS[document]
    fields = _get(document, "fields", dict)
    if not fields or not all(type(bits) is int and bits > 0 for bits in fields.values()):
        raise CorruptError("element format: fields", expected="bits", found=f"{fields!r:.60}")
    try:
        return ElementFormat(
            name=_get(document, "name", str),
            dtype=_dtype(_get(document, "dtype", str)),
            fields=tuple(Field(name=name, bits=bits) for name, bits in fields.items()),
            bias=_get(document, "bias", int | None, None),
            excess=_get(document, "excess", int, 0),
        )
    except ValueError as error:
        raise CorruptError(f"element format: {error}") from error


def _dtype(name: str) -> np.dtype:
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.name != name or dtype.kind not in "biufcV" or dtype.itemsize == 0:
        raise UnsupportedError("dtype", expected="a numeric dtype", found=f"{name!r:.60}")
    return dtype


def _get(document: Any, key: str, kind: Any, default: Any = ...) -> Any:
    """A key of an object, of a type; a boolean is no integer."""
    value = document.get(key, default) if isinstance(document, Mapping) else ...
    if value is ... or not isinstance(value, kind) or isinstance(value, bool):
        raise CorruptError(f"number format: {key}", expected=f"{kind}", found=f"{value!r:.60}")
    return value
