"""The structure of a pytree as JSON.

    leaf: index of the leaf      None: null
    {"dict": [[key, node], ...]}   {"list": [node, ...]}   {"tuple": [node, ...]}
    {"value": true, an integer of 64 bits or a text}   {"int": hexadecimal digits}
    {"float": bits as 16 hexadecimal digits}   {"complex": [bits, bits]}
    {"json": anything}: an item of Orbax that is JSON

Keys are strings, integers or booleans. Every other kind of node (named tuples, dataclasses, Flax
states) is described as the dict of its fields, with the name of its type beside: `"of": name`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jentropy.containers import trees
from jentropy.containers.tensor import CompressedTensor, is_compressed
from jentropy.containers.trees import is_python
from jentropy.errors import CorruptError, InputError

MAX_DEPTH = 200  # deeper is no pytree but an attack on the reader's stack
WORD = 1 << 63  # integers of less are JSON's


def describe(packed: Any) -> tuple[list[tuple[str, CompressedTensor]], Any]:
    """Leaves of a pytree by name, and its structure."""
    leaves: list[tuple[tuple, CompressedTensor]] = []

    def node(value: Any, path: tuple) -> Any:
        if value is None:
            return None
        if len(path) > MAX_DEPTH:
            raise InputError("depth of the pytree", expected=f"at most {MAX_DEPTH}", found="more")
        if is_compressed(value):
            leaves.append((path, value))
            return len(leaves) - 1
        if is_python(value):
            return _python(value)
        children = jax.tree_util.tree_flatten_with_path(
            value, is_leaf=lambda child: child is not value
        )[0]
        if type(value) in (list, tuple):
            # None is a child here, though no leaf of JAX's.
            items = [node(v, (*path, jax.tree_util.SequenceKey(i))) for i, v in enumerate(value)]
            return {type(value).__name__: items}
        if isinstance(value, dict):
            children = [((jax.tree_util.DictKey(key),), value[key]) for key in value]
        pairs = [[_key(p[0]), node(child, (*path, *p))] for p, child in children]
        return {"dict": pairs, **({} if type(value) is dict else {"of": type(value).__name__})}

    tree = node(packed, ())
    names = trees.leaf_names([path for path, _ in leaves])
    return [(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)], tree


def _key(key: Any) -> str | int:
    for attribute in ("key", "name", "idx"):
        value = getattr(key, attribute, None)
        if isinstance(value, str | int):
            return value
    raise InputError("key of a pytree", expected="a string or an integer", found=f"{key!r:.60}")


def _python(value: Any) -> dict[str, Any]:
    if isinstance(value, float):
        return {"float": struct.pack(">d", value).hex()}
    if isinstance(value, complex):
        return {"complex": [struct.pack(">d", part).hex() for part in (value.real, value.imag)]}
    if isinstance(value, int) and not -WORD <= value < WORD:
        return {"int": f"{value:x}"}
    return {"value": value}


def _float(digits: Any) -> float:
    return struct.unpack(">d", bytes.fromhex(digits))[0]


def _first(node: Any) -> tuple[str | None, Any]:
    """A node's kind and what it has; nothing of a leaf."""
    nothing: tuple[str | None, Any] = (None, None)
    return next(iter(node.items()), nothing) if isinstance(node, dict) else nothing


def rebuild(tree: Any, leaves: Sequence[Any], file: Path, *, json: bool = True) -> Any:
    """The pytree of a structure.

    Args:
      file: for messages.
      json: False leaves the items that are JSON out, as None.

    Raises:
      CorruptError: a structure that is not as described above.
    """

    def node(value: Any, depth: int) -> Any:
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(leaves):
            return leaves[value]
        if isinstance(value, dict) and depth <= MAX_DEPTH:
            kind, items = _first(value)
            if value.keys() - {kind, "of" if kind == "dict" else kind}:
                kind = None
            if kind in ("list", "tuple") and isinstance(items, list):
                made = [node(item, depth + 1) for item in items]
                return made if kind == "list" else tuple(made)
            if kind == "dict" and isinstance(items, list):
                pairs = [item for item in items if isinstance(item, list) and len(item) == 2]
                if len(pairs) == len(items) and all(isinstance(k, str | int) for k, _ in pairs):
                    return {key: node(item, depth + 1) for key, item in pairs}
            if kind == "json":
                return items if json else None
            try:
                if kind == "value" and is_python(items):
                    return items
                if kind == "int":
                    return int(items, 16)
                if kind == "float":
                    return _float(items)
                if kind == "complex":
                    return complex(_float(items[0]), _float(items[1]))
            except (TypeError, ValueError, LookupError, struct.error):
                pass
        raise CorruptError(
            "index: tree", file=file, expected="a node as FORMAT.md has it", found=f"{value!r:.60}"
        )

    return node(tree, 0)


def walk(tree: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every node of a sound structure that has no nodes below it, with its path."""

    def visit(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple, Any]]:
        kind, items = _first(value)
        if kind == "dict":
            for key, node in items:
                yield from visit(node, (*path, key))
        elif kind in ("list", "tuple"):
            for n, node in enumerate(items):
                yield from visit(node, (*path, n))
        else:
            yield path, value

    yield from visit(tree, ())


def numbers(tree: Any) -> list[tuple[str, int]]:
    """Names and numbers of the leaves of a sound structure, in order."""
    found = [(path, leaf) for path, leaf in walk(tree) if type(leaf) is int]
    names = trees.leaf_names([path for path, _ in found])
    return [(name, number) for name, (_, number) in zip(names, found, strict=True)]


def others(tree: Any) -> list[tuple[str, Any]]:
    """Names and values of Python's numbers and texts in a sound structure, JSON left out."""
    found = [
        (path, rebuild(leaf, (), Path()))
        for path, leaf in walk(tree)
        if isinstance(leaf, dict) and "json" not in leaf
    ]
    return [(trees.leaf_name(path), value) for path, value in found]


def types(tree: Any) -> list[str]:
    """Names of the types of nodes that come back as dicts."""
    if not isinstance(tree, dict):
        return []
    below = [item for kind in ("list", "tuple") for item in tree.get(kind, ())]
    below += [node for _, node in tree.get("dict", ())]
    own = [tree["of"]] if isinstance(tree.get("of"), str) else []
    return sorted({*own, *(name for node in below for name in types(node))})
