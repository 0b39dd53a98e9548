"""A number format as plain data for JSON, and back.

    {"name": text, "element": element, "parameters": [parameter, ...],
     "decoder": step, "transforms": [step, ...]}
    parameter  {"name": text, "field": text, "element": element, "block": [integer, ...] or null,
                "role": scale | divisor | zero_point | offset, "of": text}
    element    a name in ELEMENTS, or all that there is to say of another one:
               {"name": text, "dtype": text, "fields": {text: bits, ...}, "bias": integer,
                "excess": integer, "table": [number of every code, ...]}
    step       {"name": text, "settings": {text: integer, ...}, "arrays": [array, ...]}
    array      {"name": text, "element": element, or {"raw": dtype}, "shape": [integer, ...]}

Keys whose value is the usual one (no parameters, decoder `elementwise`, no transforms, a scale, of
the weight, no bias, no excess, no table, no settings, no arrays) are left out. Reading trusts
nothing: see `jentropy.schema`.

Example:
  >>> from jentropy.formats import MXFP4
  >>> document = FORMAT.write(MXFP4)
  >>> document["element"], document["parameters"][0]["block"]
  ('FP4_E2M1', [32])
  >>> FORMAT.read(document) == MXFP4
  True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from jentropy.errors import CorruptError, UnsupportedError
from jentropy.schema import (
    NUMBER,
    TEXT,
    Key,
    Kind,
    below,
    checked,
    either,
    instance,
    many,
    misfit,
    name_in,
    optional,
    record,
    table,
)

from . import ELEMENTS
from .decoders import DECODERS
from .element import RAW, ElementFormat, Field, raw_element
from .format import Format, Parameter, Role
from .step import ELEMENTWISE, LARGEST, SideArray, Step
from .transforms import TRANSFORMS


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


def _own_element(**told: Any) -> ElementFormat:
    element = _made(ElementFormat, **told)
    if ELEMENTS.get(element.name, element) != element:
        raise CorruptError(".name", expected="none that is known otherwise", found=element.name)
    return element


def _float(value: Any) -> float:
    try:
        return float(NUMBER.read(value))
    except OverflowError:
        raise misfit("a float32 number", value) from None


def _name(element: Any) -> str:
    """Of an element; empty of anything else."""
    return getattr(element, "name", "")


INTEGER = instance("an integer", int)
DTYPE = Kind(_dtype, lambda dtype: dtype.name)
BITS = checked(
    table(below(LARGEST)), "bits of each field", lambda bits: bits and all(bits.values())
)
NAMES, ROLES = name_in(ELEMENTS), name_in({role.name.lower(): role for role in Role})
ELEMENT = either(
    lambda e: isinstance(e, str) or ELEMENTS.get(_name(e)) == e,
    Kind(lambda name: ELEMENTS[NAMES.read(name)], lambda element: element.name),
    record(
        _own_element,
        {
            "name": TEXT,
            "dtype": DTYPE,
            "fields": Kind(_fields, lambda fields: {f.name: f.bits for f in fields}),
            "bias": Key(INTEGER, default=None),
            "excess": Key(INTEGER, default=0),
            "table": Key(optional(many(Kind(_float))), default=None),
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
RAW_ELEMENT = record(lambda raw: raw_element(raw), {"raw": Key(DTYPE, "dtype")})
SIDE_ARRAY = record(
    SideArray,
    {
        "name": TEXT,
        "element": either(
            lambda e: "raw" in e if isinstance(e, dict) else _name(e) == RAW,
            RAW_ELEMENT,
            ELEMENT,
        ),
        "shape": many(below(LARGEST)),
    },
)
SETTINGS = table(below(LARGEST))


def _step(names: Mapping[str, Any]) -> Kind:
    """A step whose name is one of these."""
    return record(
        partial(_made, Step),
        {
            "name": name_in(names),
            "settings": Key(
                Kind(lambda told: tuple(sorted(SETTINGS.read(told).items())), dict), default=()
            ),
            "arrays": Key(many(SIDE_ARRAY), default=()),
        },
    )


FORMAT = record(
    partial(_made, Format),
    {
        "name": TEXT,
        "element": ELEMENT,
        "parameters": Key(many(PARAMETER), default=()),
        "decoder": Key(_step(DECODERS), default=ELEMENTWISE),
        "transforms": Key(many(_step(TRANSFORMS)), default=()),
    },
)
