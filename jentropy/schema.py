"""JSON with a schema: one table says how records are read, checked and written.

A `Kind` is both directions of one kind of value. Reading trusts nothing: whatever is missing, of
another type or out of range is an error whose `what` is the place, `.tensors[3].chunks[0][1]`;
keys that a table does not have are passed over. What is read can be written, to the same JSON.

Example:
  >>> POINT = record(complex, {"real": NUMBER, "imag": Key(NUMBER, default=0)})
  >>> POINT.read({"real": 1}), POINT.write(2j)
  ((1+0j), {'real': 0.0, 'imag': 2.0})
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from jentropy.errors import CorruptError, InputError, UnsupportedError

REQUIRED: Any = object()  # the default of a key that has none


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of JSON value.

    Attributes:
      read: from JSON to what it stands for; an InputError without a place if it is of another kind.
      write: the way back.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = _as_it_is


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


def misfit(expected: str, found: Any, error: type[InputError] = CorruptError) -> InputError:
    """The error of a value of another kind.

    Args:
      expected: what is expected, in words.
      found: the value; its start is shown.
      error: class of the error.

    Returns:
      An error that has no place yet: see `within`.

    Example:
      >>> str(misfit("a text", 3))
      ': expected a text, found 3'
    """
    return error("", expected=expected, found=f"{found!r:.60}")


def within(error: InputError, place: str) -> InputError:
    """The same error, of a value further out.

    Args:
      error: of what lies in that value.
      place: how to get there: a name, `.key` or `[number]`.

    Example:
      >>> str(within(misfit("a text", 3), ".names[2]"))
      '.names[2]: expected a text, found 3'
    """
    what = error.what if error.what[:1] in ("", ".", "[", ":") else f": {error.what}"
    keywords = {key: getattr(error, key) for key in ("tensor", "expected", "found", "hint")}
    return type(error)(place + what, **keywords)


def where(
    expected: str, holds: Callable[[Any], Any], error: type[InputError] = CorruptError
) -> Kind:
    """A value of which something holds.

    Args:
      expected: what is expected, in words.
      holds: true of such values.
      error: class of the error of all others.

    Example:
      >>> where("an even number", lambda n: n % 2 == 0).read(4)
      4
    """

    def read(value: Any) -> Any:
        if not holds(value):
            raise misfit(expected, value, error)
        return value

    return Kind(read)


def checked(
    kind: Kind, expected: str, holds: Callable[[Any], Any], error: type[InputError] = CorruptError
) -> Kind:
    """Those values of a kind of which something holds.

    Args:
      kind: what they are.
      expected, holds, error: see `where`; what is read is held to it.

    Example:
      >>> checked(many(SIZE), "three sizes", lambda sizes: len(sizes) == 3).read([1, 2, 3])
      (1, 2, 3)
    """
    read, check = kind.read, where(expected, holds, error).read
    return Kind(lambda value: check(read(value)), kind.write)


def instance(expected: str, *types: type) -> Kind:
    """A value of one of some types of JSON's; a boolean is no integer.

    Example:
      >>> instance("an integer", int).read(7)
      7
    """
    return where(expected, lambda value: type(value) in types)


def matching(expected: str, pattern: str) -> Kind:
    """A text that matches a regular expression as a whole.

    Example:
      >>> matching("a letter", "[a-z]").read("x")
      'x'
    """
    matches = re.compile(pattern).fullmatch
    return where(expected, lambda value: type(value) is str and matches(value))


def below(stop: float) -> Kind:
    """An integer from 0 on, below another number.

    Example:
      >>> below(10).read(9)
      9
    """

    def read(value: Any) -> int:  # not by `where`: an index is full of them
        if type(value) is not int or not 0 <= value < stop:
            raise misfit(f"an integer from 0 below {stop}", value)
        return value

    return Kind(read)


ANY = Kind(lambda value: value)
TEXT = instance("a text", str)
FLAG = instance("true or false", bool)
OBJECT = instance("an object", dict)
LIST = instance("a list", list)
INTEGER = instance("an integer", int)
NUMBER = instance("a number", int, float)
SIZE = below(1 << 63)  # a longer one is nobody's, and its digits fill a message
NOT = Kind(lambda value: not FLAG.read(value), lambda value: not value)
_DIGITS = matching("a hash of 16 hexadecimal digits", "[0-9a-f]{16}")
DIGEST = Kind(lambda value: int(_DIGITS.read(value), 16), lambda value: f"{value:016x}")
_ENCODED = matching("base64", "([0-9A-Za-z+/]{4})*([0-9A-Za-z+/]{2}==|[0-9A-Za-z+/]{3}=)?")
BASE64 = Kind(
    lambda value: base64.b64decode(_ENCODED.read(value)),
    lambda value: base64.b64encode(value).decode(),
)


def name_in(names: Collection[str]) -> Kind:
    """A name that this release knows; any other is an UnsupportedError.

    Example:
      >>> name_in(["stored", "deflate"]).read("stored")
      'stored'
    """
    return checked(TEXT, " or ".join(names), lambda name: name in names, UnsupportedError)


def either(is_first: Callable[[Any], bool], first: Kind, second: Kind) -> Kind:
    """A value of one of two kinds.

    Args:
      is_first: tells them apart, in JSON and as what they stand for.
      first, second: the kinds.

    Example:
      >>> either(lambda value: isinstance(value, str), TEXT, SIZE).read(3)
      3
    """
    return Kind(
        lambda value: (first if is_first(value) else second).read(value),
        lambda value: (first if is_first(value) else second).write(value),
    )


def optional(kind: Kind) -> Kind:
    """A value of a kind, or null.

    Example:
      >>> optional(SIZE).read(None) is None
      True
    """
    return either(lambda value: value is None, ANY, kind)


def _read_each(
    reads: Iterable[Callable[[Any], Any]], values: Iterable[Any], names: Iterable[Any]
) -> tuple[Any, ...]:
    done: list[Any] = []
    try:
        for read, value in zip(reads, values, strict=False):
            done.append(read(value))
    except InputError as error:
        place = next(itertools.islice(names, len(done), None))
        raise within(error, f"[{place!r:.60}]") from error
    return tuple(done)


def many(kind: Kind) -> Kind:
    """A list of values of one kind, read as a tuple.

    Example:
      >>> many(DIGEST).read(["00000000000000ff"]), many(DIGEST).write((255,))
      ((255,), ['00000000000000ff'])
    """
    reads, items, write = itertools.repeat(kind.read), LIST.read, kind.write
    return Kind(
        lambda values: _read_each(reads, items(values), itertools.count()),
        list if write is _as_it_is else lambda values: [write(value) for value in values],
    )


def row(*kinds: Kind, least: int | None = None) -> Kind:
    """A list of values of a kind each, read as a tuple.

    Args:
      kinds: of the values in turn.
      least: how many of them there always are; None: all.

    Example:
      >>> row(TEXT, SIZE, least=1).read(["a"])
      ('a',)
    """
    lengths = range(len(kinds) if least is None else least, len(kinds) + 1)
    items = checked(LIST, f"a list of {len(kinds)}", lambda values: len(values) in lengths).read
    reads, writes = [kind.read for kind in kinds], [kind.write for kind in kinds]
    plain = all(write is _as_it_is for write in writes)
    return Kind(
        lambda values: _read_each(reads, items(values), itertools.count()),
        list
        if plain
        else lambda values: [write(value) for write, value in zip(writes, values, strict=False)],
    )


def table(kind: Kind) -> Kind:
    """An object whose values are of one kind, under any keys.

    Example:
      >>> table(SIZE).read({"a": 1})
      {'a': 1}
    """
    reads = itertools.repeat(kind.read)
    return Kind(
        lambda told: dict(
            zip(told, _read_each(reads, OBJECT.read(told).values(), told), strict=True)
        ),
        lambda values: {key: kind.write(value) for key, value in values.items()},
    )


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
    writes = [(name, key.kind.write, key.default) for name, key in full.items()]
    # Two more, so that what is got is a tuple, whatever there is.
    attributes = [key.attribute or name for name, key in full.items()]
    get = attrgetter(*attributes, "__class__", "__class__")

    def read(value: Any) -> Any:
        told, place = OBJECT.read(value), ""
        done: dict[str, Any] = {}
        try:
            for place, read_one, default in reads:
                if place in told:
                    done[place] = read_one(told[place])
                elif default is REQUIRED:
                    raise misfit("it", None)
                else:
                    done[place] = default
            if rest:
                done[rest] = {key: item for key, item in told.items() if key not in full}
            place = ""
            return make(**done)
        except InputError as error:
            placed = within(error, f".{place}" if place else "")
            name = told.get(tensor)
            raise placed.at(tensor=name if isinstance(name, str) else None) from error

    def write(value: Any) -> dict[str, Any]:
        done = {}
        for (name, write_one, default), item in zip(writes, get(value), strict=False):
            if default is REQUIRED or item != default:
                done[name] = item if write_one is _as_it_is else write_one(item)
        return done | dict(getattr(value, rest)) if rest else done

    return Kind(read, write)


def parse(kind: Kind, text: str | bytes, file: object, what: str = "content") -> Any:
    """Reads JSON of a kind.

    Args:
      kind: what is expected.
      text: JSON, in UTF-8 if it is bytes.
      file: where it was read, for messages.
      what: what it is, for messages.

    Returns:
      What it stands for.

    Raises:
      CorruptError: no JSON, or of another kind, by its place.
      UnsupportedError: a name that this release does not know.

    Example:
      >>> parse(many(SIZE), "[1, 2]", "sizes.json")
      (1, 2)
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what}: not JSON: {error}", file=file) from error
    try:
        return kind.read(content)
    except InputError as error:
        raise within(error, what).at(file=file) from error
