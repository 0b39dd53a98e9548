"""JSON with a schema: one table says how records are read, checked and written.

A `Kind` is both directions of one kind of value. Reading trusts nothing: whatever is missing, of
another type or out of range is an error whose `what` is the place, `.tensors[3].chunks[0][1]`;
keys that a table does not have are passed over. What is read can be written, to the same JSON.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from jentropy.errors import CorruptError, InputError, UnsupportedError

REQUIRED: Any = object()  # the default of a key that has none
HASH = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of JSON value.

    Attributes:
      read: from JSON to what it stands for; an InputError without a place if it is of another kind.
      write: the way back.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True, slots=True)
class Key:
    """A key of an object.

    Attributes:
      kind: of its value.
      attribute: of the record, dotted; empty: named as the key.
      default: what it stands for where it is left out; REQUIRED: it may not be.
    """

    kind: Kind
    attribute: str = ""
    default: Any = REQUIRED


def misfit(expected: str, found: Any) -> CorruptError:
    """The error of a value of another kind."""
    return CorruptError("", expected=expected, found=f"{found!r:.60}")


def within(error: InputError, place: str) -> InputError:
    """The same error, of a value further out."""
    what = error.what if error.what[:1] in ("", ".", "[", ":") else f": {error.what}"
    return type(error)(
        place + what,
        tensor=error.tensor,
        expected=error.expected,
        found=error.found,
        hint=error.hint,
    )


def checked(kind: Kind, expected: str, holds: Callable[[Any], bool]) -> Kind:
    """Those values of a kind for which something holds."""

    def read(value: Any) -> Any:
        known = kind.read(value)
        if not holds(known):
            raise misfit(expected, value)
        return known

    return Kind(read, kind.write)


def instance(expected: str, *types: type) -> Kind:
    """A value of one of some types; a boolean is no integer."""

    def read(value: Any) -> Any:
        if type(value) not in types:
            raise misfit(expected, value)
        return value

    return Kind(read)


def below(stop: float) -> Kind:
    """An integer from 0 on."""

    def read(value: Any) -> int:
        if type(value) is not int or not 0 <= value < stop:
            raise misfit(f"an integer from 0 below {stop}", value)
        return value

    return Kind(read)


TEXT = instance("a text", str)
FLAG = instance("true or false", bool)
OBJECT = instance("an object", dict)
NUMBER = instance("a number", int, float)
ANY = Kind(lambda value: value)
SIZE = below(math.inf)
NOT = Kind(lambda value: not FLAG.read(value), lambda value: not value)


def _digest(value: Any) -> int:
    if type(value) is not str or not HASH.fullmatch(value):
        raise misfit("a hash of 16 hexadecimal digits", value)
    return int(value, 16)


DIGEST = Kind(_digest, lambda value: f"{value:016x}")


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(TEXT.read(value), validate=True)
    except ValueError:
        raise misfit("base64", value) from None


BASE64 = Kind(_bytes, lambda value: base64.b64encode(value).decode())


def name_in(names: Container[str] | Iterable[str]) -> Kind:
    """A name that this release knows."""

    def read(value: Any) -> str:
        if TEXT.read(value) not in names:
            raise UnsupportedError("", expected=" or ".join(names), found=f"{value!r:.60}")
        return value

    return Kind(read)


def either(is_first: Callable[[Any], bool], first: Kind, second: Kind) -> Kind:
    """A value of one of two kinds; `is_first` tells them apart, in JSON and as what they are."""
    return Kind(
        lambda value: (first if is_first(value) else second).read(value),
        lambda value: (first if is_first(value) else second).write(value),
    )


def optional(kind: Kind) -> Kind:
    """A value of a kind, or null."""
    return either(lambda value: value is None, ANY, kind)


def _read_each(reads: Iterable[Callable[[Any], Any]], values: Iterable[Any]) -> tuple[Any, ...]:
    done: list[Any] = []
    try:
        for read, value in zip(reads, values, strict=False):
            done.append(read(value))
    except InputError as error:
        raise within(error, f"[{len(done)}]") from error
    return tuple(done)


def many(kind: Kind) -> Kind:
    """A list of values of one kind, read as a tuple."""

    def read(values: Any) -> tuple[Any, ...]:
        if type(values) is not list:
            raise misfit("a list", values)
        return _read_each(itertools.repeat(kind.read), values)

    return Kind(read, lambda values: [kind.write(value) for value in values])


def row(*kinds: Kind, least: int | None = None) -> Kind:
    """A list of values of a kind each, read as a tuple.

    Args:
      least: how many of them there always are; None: all.
    """
    reads, fewest = [kind.read for kind in kinds], len(kinds) if least is None else least

    def read(values: Any) -> tuple[Any, ...]:
        if type(values) is not list or not fewest <= len(values) <= len(reads):
            raise misfit(f"a list of {len(reads)}", values)
        return _read_each(reads, values)

    def write(values: tuple[Any, ...]) -> list[Any]:
        return [kind.write(value) for kind, value in zip(kinds, values, strict=False)]

    return Kind(read, write)


def table(kind: Kind) -> Kind:
    """An object whose values are of one kind, under any keys."""

    def read(values: Any) -> dict[str, Any]:
        done: dict[str, Any] = {}
        key = ""
        try:
            for key, value in OBJECT.read(values).items():
                done[key] = kind.read(value)
        except InputError as error:
            raise within(error, f"[{key!r:.60}]") from error
        return done

    return Kind(read, lambda values: {key: kind.write(value) for key, value in values.items()})


def record(
    make: Callable[..., Any], keys: Mapping[str, Key | Kind], *, rest: str = "", tensor: str = ""
) -> Kind:
    """An object of known keys, read as a record.

    Args:
      make: the record of all values, by key.
      keys: in the order in which they are written; a `Kind` alone is a key that is never left out.
      rest: argument and attribute that has all other keys; empty: they are passed over.
      tensor: key of the tensor's name, for messages.
    """
    full = {name: key if isinstance(key, Key) else Key(key) for name, key in keys.items()}
    reads = [(name, key.kind.read, key.default) for name, key in full.items()]
    writes = [
        (name, attrgetter(key.attribute or name), key.kind.write, key.default)
        for name, key in full.items()
    ]

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise misfit("an object", value)
        done: dict[str, Any] = {}
        place = ""
        try:
            for place, read_one, default in reads:
                if place in value:
                    done[place] = read_one(value[place])
                elif default is REQUIRED:
                    raise misfit("it", None)
                else:
                    done[place] = default
            if rest:
                done[rest] = {key: item for key, item in value.items() if key not in full}
            place = ""
            return make(**done)
        except InputError as error:
            placed = within(error, f".{place}" if place else "")
            raise placed.at(tensor=value.get(tensor)) from error

    def write(value: Any) -> dict[str, Any]:
        done = {}
        for name, get, write_one, default in writes:
            item = get(value)
            if default is REQUIRED or item != default:
                done[name] = write_one(item)
        return done | dict(getattr(value, rest)) if rest else done

    return Kind(read, write)


def parse(kind: Kind, text: str | bytes, file: object, what: str = "content") -> Any:
    """Reads JSON of a kind.

    Args:
      file: where it was read, for messages.
      what: what it is, for messages.

    Raises:
      CorruptError: no JSON, or of another kind, by its place.
      UnsupportedError: a name that this release does not know.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what}: not JSON: {error}", file=file) from error
    try:
        return kind.read(content)
    except InputError as error:
        raise within(error, what).at(file=file) from error
