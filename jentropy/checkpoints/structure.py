"""The structure of a pytree as JSON.

    leaf: index of the leaf      None: null
    {"dict": [[key, node], ...]}   {"list": [node, ...]}   {"tuple": [node, ...]}

Keys are strings, integers or booleans. Every other kind of node (named tuples, dataclasses, Flax
states) is described as the dict of its fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jentropy.containers import trees
from jentropy.containers.tensor import CompressedTensor, is_compressed
from jentropy.errors import CorruptError, InputError

MAX_DEPTH = 200  # deeper is no pytree but an attack on the reader's stack


def describe(packed: Any) -> tuple[list[tuple[str, CompressedTensor]], Any]:
    """Leaves of a pytree by dotted path, and its structure."""
    leaves: list[tuple[str, CompressedTensor]] = []

    def node(value: Any, path: tuple) -> Any:
        if value is None:
            return None
        if len(path) > MAX_DEPTH:
            raise InputError("depth of the pytree", expected=f"at most {MAX_DEPTH}", found="more")
        if is_compressed(value):
            leaves.append((trees.leaf_name(path), value))
            return len(leaves) - 1
        children = jax.tree_util.tree_flatten_with_path(
            value, is_leaf=lambda child: child is not value
        )[0]
        if type(value) in (list, tuple):
            # None is a child here, though no leaf of JAX's.
            items = [node(v, (*path, jax.tree_util.SequenceKey(i))) for i, v in enumerate(value)]
            return {type(value).__name__: items}
        if isinstance(value, dict):
            children = [((jax.tree_util.DictKey(key),), value[key]) for key in value]
        return {"dict": [[_key(p[0]), node(child, (*path, *p))] for p, child in children]}

    tree = node(packed, ())
    return leaves, tree


def _key(key: Any) -> str | int:
    for attribute in ("key", "name", "idx"):
        value = getattr(key, attribute, None)
        if isinstance(value, str | int):
            return value
    raise InputError("key of a pytree", expected="a string or an integer", found=f"{key!r:.60}")


def rebuild(tree: Any, leaves: Sequence[Any], file: Path) -> Any:
    """The pytree of a structure.

    Raises:
      CorruptError: a structure that is not as described above.
    """

    def node(value: Any, depth: int) -> Any:
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(leaves):
            return leaves[value]
        if isinstance(value, dict) and len(value) == 1 and depth <= MAX_DEPTH:
            ((kind, items),) = value.items()
            if kind in ("list", "tuple") and isinstance(items, list):
                made = [node(item, depth + 1) for item in items]
                return made if kind == "list" else tuple(made)
            if kind == "dict" and isinstance(items, list):
                pairs = [item for item in items if isinstance(item, list) and len(item) == 2]
                if len(pairs) == len(items) and all(isinstance(k, str | int) for k, _ in pairs):
                    return {key: node(item, depth + 1) for key, item in pairs}
        raise CorruptError(
            "index: tree", file=file, expected="a node as FORMAT.md has it", found=f"{value!r:.60}"
        )

    return node(tree, 0)
