"""The structure of a pytree, and its JSON.

A *structure* is dicts, lists and tuples, `Fields` for nodes of any other type (named tuples,
dataclasses, Flax states), and `QuantizedTensor`. Its leaves are None, Python's numbers and texts,
`Stored` for the number of a tensor and `Json` for an item of Orbax that is a JSON file. As JSON:

    Stored: its number      None: null
    {"dict": [[key, node], ...]}   {"list": [node, ...]}   {"tuple": [node, ...]}
    {"dict": ..., "of": name of the type}   {"quantized": [[key, node], ...], "format": number}
    {"value": true, an integer of 64 bits or a text}   {"int": hexadecimal digits}
    {"float": bits as 16 hexadecimal digits}   {"complex": [bits, bits]}   {"json": anything}

Keys are strings, integers or booleans.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jentropy.containers import trees
from jentropy.containers.tensor import is_compressed
from jentropy.containers.trees import is_python
from jentropy.errors import InputError
from jentropy.formats import Format, QuantizedTensor
from jentropy.schema import ANY, SIZE, TEXT, Kind, checked, instance, many, misfit, row

MAX_DEPTH = 200  # deeper is no pytree but an attack on the reader's stack
WORD = 1 << 63  # integers of less are JSON's
BESIDE = {"dict": "of", "quantized": "format"}  # keys of a node beside its first one
BRANCHES = (dict, list, tuple, QuantizedTensor)

Path = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A leaf that is a tensor."""

    number: int


@dataclass(frozen=True, slots=True)
class Json:
    """An item of Orbax that is JSON."""

    content: Any


class Fields(dict):
    """The fields of a node of a type that comes back as a dict.

    Args:
      of: name of the type.
      fields: by key.
    """

    def __init__(self, of: str, fields: Mapping[str | int, Any]):
        super().__init__(fields)
        self.of = of


def flatten(pytree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """The arrays of a pytree by name, compressed or not, and its structure.

    Raises:
      InputError: a key that is no string, integer or boolean; a tree that is too deep.
      CorruptError: a quantised weight whose codes are not those of its format.
    """
    leaves: list[tuple[Path, Any]] = []

    def leaf(value: Any, path: Path) -> Stored:
        leaves.append((path, value))
        return Stored(len(leaves) - 1)

    def node(value: Any, path: Path) -> Any:
        if len(path) > MAX_DEPTH:
            raise InputError("depth of the pytree", expected=f"at most {MAX_DEPTH}", found="more")
        if value is None or is_python(value):
            return value
        if is_compressed(value):
            return leaf(value, path)
        if isinstance(value, QuantizedTensor):
            _check(value, path)
        if type(value) in (list, tuple) or isinstance(value, QuantizedTensor):
            return _with(value, lambda keys, child: node(child, (*path, *keys)))
        if isinstance(value, dict):  # JAX would sort them
            pairs = [(jax.tree_util.DictKey(key), child) for key, child in value.items()]
        else:
            inside = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda v: v is not value)
            pairs = [(keys[0], child) for keys, child in inside[0] if keys]
            if len(pairs) < len(inside[0]):
                return leaf(value, path)
        fields = {_key(key): node(child, (*path, _key(key))) for key, child in pairs}
        return fields if type(value) is dict else Fields(type(value).__name__, fields)

    tree = node(pytree, ())
    names = trees.leaf_names([path for path, _ in leaves])
    return [(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)], tree


def _key(key: Any) -> str | int:
    for attribute in ("key", "name", "idx"):
        value = getattr(key, attribute, None)
        if isinstance(value, str | int):
            return value
    raise InputError("key of a pytree", expected="a string or an integer", found=f"{key!r:.60}")


def _with(node: Any, child_of: Callable[[Path, Any], Any]) -> Any:
    """A branch with other children, each of its path below the branch and the child before."""
    if isinstance(node, QuantizedTensor):
        codes = {key: child_of(("codes", key), code) for key, code in node.codes.items()}
        return dataclasses.replace(node, codes=codes)
    if isinstance(node, dict):
        return {key: child_of((key,), child) for key, child in node.items()}
    return type(node)(child_of((at,), child) for at, child in enumerate(node))


def _check(weight: QuantizedTensor, path: Path) -> None:
    try:
        weight.check()
    except InputError as error:
        raise error.at(tensor=trees.leaf_name(path)) from error


def fill(tree: Any, tensors: Sequence[Any], *, json: bool = True, path: Path = ()) -> Any:
    """The pytree of a structure.

    Args:
      tensors: what takes the places of the numbers; a quantised weight that has None among its
        codes becomes a dict of them.
      json: False leaves the items that are JSON out, as None.
      path: of the structure, for messages.

    Raises:
      CorruptError: a quantised weight whose tensors are not codes of its format.
    """
    if isinstance(tree, Stored):
        return tensors[tree.number]
    if isinstance(tree, Json):
        return tree.content if json else None
    if isinstance(tree, BRANCHES):
        tree = _with(tree, lambda keys, child: fill(child, tensors, json=json, path=(*path, *keys)))
        if isinstance(tree, QuantizedTensor):
            if any(code is None for code in tree.codes.values()):
                return dict(tree.codes)
            _check(tree, path)
    return tree


def walk(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every node of a structure, or of a pytree of such nodes, with its path; branches first."""
    yield path, tree
    if isinstance(tree, QuantizedTensor):
        path, tree = (*path, "codes"), tree.codes
    if isinstance(tree, dict | list | tuple):
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from walk(child, (*path, key))


def numbers(tree: Any) -> list[tuple[str, int]]:
    """Names and numbers of the tensors of a structure, in order."""
    stored = [(path, node.number) for path, node in walk(tree) if isinstance(node, Stored)]
    names = trees.leaf_names([path for path, _ in stored])
    return [(name, number) for name, (_, number) in zip(names, stored, strict=True)]


def others(tree: Any) -> list[tuple[str, Any]]:
    """Names and values of Python's numbers and texts in a structure."""
    return [(trees.leaf_name(path), node) for path, node in walk(tree) if is_python(node)]


def types(tree: Any) -> list[str]:
    """Names of the types of nodes that come back as dicts."""
    return sorted({node.of for _, node in walk(tree) if isinstance(node, Fields)})


def formats(tree: Any) -> list[Format]:
    """Number formats of the quantised weights of a structure, each once."""
    weights = (node for _, node in walk(tree) if isinstance(node, QuantizedTensor))
    return list(dict.fromkeys(weight.number_format for weight in weights))


def _float(digits: str) -> float:
    return struct.unpack(">d", bytes.fromhex(digits))[0]


def _bits(value: float) -> str:
    return struct.pack(">d", value).hex()


# Leaves by their only key; `value` is for all that JSON has.
LEAVES = {
    "value": checked(Kind(lambda value: value), "a number or a text", is_python),
    "int": Kind(lambda digits: int(digits, 16), lambda value: f"{value:x}"),
    "float": Kind(_float, _bits),
    "complex": Kind(
        lambda pair: complex(*map(_float, pair)), lambda v: [_bits(v.real), _bits(v.imag)]
    ),
    "json": Kind(Json, lambda item: item.content),
}
LIST = many(ANY)
PAIRS = many(row(instance("a text, an integer or a boolean", str, int, bool), ANY))


def _leaf_key(value: Any) -> str:
    if isinstance(value, int):
        return "value" if -WORD <= value < WORD else "int"
    return {float: "float", complex: "complex", Json: "json"}.get(type(value), "value")


def to_json(tree: Any, numbers: Mapping[Format, int]) -> Any:
    """JSON of a structure.

    Args:
      numbers: of the formats of its quantised weights.
    """
    if tree is None or isinstance(tree, Stored):
        return None if tree is None else tree.number
    if isinstance(tree, QuantizedTensor):
        pairs = to_json(tree.codes, numbers)["dict"]
        return {"quantized": pairs, "format": numbers[tree.number_format]}
    if isinstance(tree, dict):
        pairs = [[key, to_json(child, numbers)] for key, child in tree.items()]
        return {"dict": pairs, **({"of": tree.of} if isinstance(tree, Fields) else {})}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [to_json(child, numbers) for child in tree]}
    key = _leaf_key(tree)
    return {key: LEAVES[key].write(tree)}


def from_json(value: Any, formats: Sequence[Format], depth: int = 0) -> Any:
    """The structure of its JSON.

    Args:
      formats: by number.

    Raises:
      CorruptError: JSON that is not as described above.
    """
    if value is None:
        return None
    if type(value) is int and value >= 0:
        return Stored(value)
    try:
        (key, content), *beside = value.items()
        below = depth + 1
        if depth > MAX_DEPTH or {name for name, _ in beside} - {BESIDE.get(key)}:
            raise ValueError
        if key in LEAVES:
            return LEAVES[key].read(content)
        if key in BESIDE:
            pairs = PAIRS.read(content)
            fields = {name: from_json(child, formats, below) for name, child in pairs}
            if key == "quantized":
                number_format = formats[SIZE.read(value["format"])]
                return QuantizedTensor(number_format=number_format, codes=fields)
            return Fields(TEXT.read(value["of"]), fields) if beside else fields
        nodes = [from_json(child, formats, below) for child in LIST.read(content)]
        return {"list": list, "tuple": tuple}[key](nodes)
    except (TypeError, ValueError, LookupError, AttributeError, struct.error):
        pass
    raise misfit("a node as FORMAT.md has it", value)
