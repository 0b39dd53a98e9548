"""A number format as plain data for JSON, and back.

    {"name": text, "element": element, "parameters": [parameter, ...]}
    parameter  {"name": text, "field": text, "element": element, "block": [integer, ...] or null,
                "role": scale | divisor | zero_point | offset, "of": text}
    element    a name in ELEMENTS, or all that there is to say of another one:
               {"name": text, "dtype": text, "fields": {text: bits, ...}, "bias": integer,
                "excess": integer}

Keys whose value is the usual one (no parameters, a scale, of the weight, no bias, no excess) are
left out. Reading trusts nothing: see `jentropy.schema`.

Example:
  >>> from jentropy.formats import MXFP4
  >>> document = FORMAT.write(MXFP4)
  >>> document["element"], document["parameters"][0]["block"]
  ('FP4_E2M1', [32])
  >>> FORMAT.read(document) == MXFP4
  True
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jentropy.errors import CorruptError, UnsupportedError
from jentropy.schema import (
    TEXT,
    Key,
    Kind,
    below,
    checked,
    either,
    instance,
    many,
    name_in,
    optional,
    record,
    table,
)

from . import ELEMENTS
from .element import ElementFormat, Field
from .format import Format, Parameter, Role

LARGEST = 1 << 63  # no block is larger


def _made(make: Callable[..., Any], **told: Any) -> Any:
    """What a table tells of, if it does not contradict itself."""
    try:
        return make(**told)
    except ValueError as error:
        raise CorruptError(f": {error}") from error


def _dtype(value: Any) -> np.dtype:
    try:
        dtype = np.dtype(TEXT.read(value))
    except TypeError:
        dtype = np.dtype(object)
    if dtype.name != value or dtype.kind not in "biufcV" or dtype.itemsize == 0:
        raise UnsupportedError("", expected="a numeric dtype", found=f"{value!r:.60}")
    return dtype


def _fields(value: Any) -> tuple[Field, ...]:
    return tuple(Field(name=name, bits=bits) for name, bits in BITS.read(value).items())


INTEGER = instance("an integer", int)
BITS = checked(
    table(below(LARGEST)), "bits of each field", lambda bits: bits and all(bits.values())
)
NAMES, ROLES = name_in(ELEMENTS), name_in({role.name.lower(): role for role in Role})
ELEMENT = either(
    lambda e: isinstance(e, str) or ELEMENTS.get(getattr(e, "name", "")) == e,
    Kind(lambda name: ELEMENTS[NAMES.read(name)], lambda element: element.name),
    record(
        partial(_made, ElementFormat),
        {
            "name": TEXT,
            "dtype": Kind(_dtype, lambda dtype: dtype.name),
            "fields": Kind(_fields, lambda fields: {f.name: f.bits for f in fields}),
            "bias": Key(INTEGER, default=None),
            "excess": Key(INTEGER, default=0),
        },
    ),
)
PARAMETER = record(
    Parameter,
    {
        "name": TEXT,
        "field": TEXT,
        "element": ELEMENT,
        "block": optional(many(below(LARGEST))),
        "role": Key(
            Kind(lambda name: Role[ROLES.read(name).upper()], lambda role: role.name.lower()),
            default=Role.SCALE,
        ),
        "of": Key(TEXT, default=None),
    },
)
FORMAT = record(
    partial(_made, Format),
    {"name": TEXT, "element": ELEMENT, "parameters": Key(many(PARAMETER), default=())},
)
