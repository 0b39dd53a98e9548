"""Number formats as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from jentropy.errors import CorruptError, UnsupportedError

from .element import RAW, ElementFormat
from .format import Format, Parameter, Role


def to_document(number_format: Format) -> dict[str, Any]:
    """A format as JSON."""
    return {
        "name": number_format.name,
        "element": _element_document(number_format.element),
        "parameters": [
            {
                "name": p.name,
                "field": p.field,
                "element": _element_document(p.element),
                "block": None if p.block is None else list(p.block),
                "role": p.role.name,
                "of": p.of,
            }
            for p in number_format.parameters
        ],
    }


def from_document(document: Any) -> Format:
    """The format of `to_document`'s JSON.

    Raises:
      CorruptError: JSON that is none.
      UnsupportedError: an element or a role that this release does not know.
    """
    try:
        return Format(
            name=str(document["name"]),
            element=_element(document["element"]),
            parameters=tuple(
                Parameter(
                    name=str(p["name"]),
                    field=str(p["field"]),
                    element=_element(p["element"]),
                    block=None if p["block"] is None else tuple(int(n) for n in p["block"]),
                    role=Role[p["role"]],
                    of=p["of"],
                )
                for p in document["parameters"]
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(
            "number format", expected="what to_document gives", found=f"{document!r:.60}"
        ) from error


def _element_document(element: ElementFormat) -> str:
    return f"{RAW} {element.dtype.name}" if element.name == RAW else element.name


def _element(name: str) -> ElementFormat:
    from . import ELEMENTS, raw_element

    kind, _, dtype = name.partition(" ")
    if kind == RAW:
        return raw_element(np.dtype(dtype))
    if kind not in ELEMENTS:
        raise UnsupportedError("format", expected=" or ".join(ELEMENTS), found=repr(name))
    return ELEMENTS[kind]
