"""Trees put into the structure of a target, as Orbax does: leaves are found by their paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy.containers import placing, trees
from jentropy.containers.tensor import CompressedTensor, is_compressed
from jentropy.errors import InputError
from jentropy.formats import QuantizedTensor

from . import structure
from .indices import some

Keys = tuple[str, ...]
KINDS = {bool: "b", int: "iu", float: "f", complex: "c"}  # of dtypes, by Python's number


def fit(tree: Any, target: Any, file: Path, *, required: Any) -> Any:
    """The leaves of a tree in the structure of a target.

    Args:
      tree: dicts, lists and tuples of `CompressedTensor` and Python's numbers and texts.
      target: a pytree of arrays, `jax.ShapeDtypeStruct`, and such numbers and texts.
      file: for messages.
      required: the part of the tree that the target has to have.

    Raises:
      InputError: leaves that are in one of the two only, or that differ, by name.
    """
    leaves = dict(_leaves(tree))
    paths, treedef = jax.tree_util.tree_flatten_with_path(target, is_leaf=is_compressed)
    wanted = {_keys(path): leaf for path, leaf in paths}
    if len(wanted) != len(paths):
        raise InputError("paths of the target", expected="each once", found="two that read alike")
    missing = [path for path in wanted if path not in leaves]
    needless = [path for path, _ in _leaves(required) if path not in wanted]
    if missing or needless:
        sides = (("no ", missing), ("also ", needless))
        told = [word + some(repr(".".join(p)) for p in paths) for word, paths in sides if paths]
        raise InputError(
            "structure", file=file, expected="the leaves of the target", found=", ".join(told)
        )
    _check_formats(tree, target, file)
    fitted = [_fitted(".".join(path), leaves[path], to, file) for path, to in wanted.items()]
    return jax.tree_util.tree_unflatten(treedef, fitted)


def _check_formats(tree: Any, target: Any, file: Path) -> None:
    """Raises InputError if a quantised weight is one of another format in the target."""
    formats = {_texts(p): w.number_format for p, w in structure.walk(tree) if _is_weight(w)}
    for path, wanted in jax.tree_util.tree_flatten_with_path(target, is_leaf=_is_weight)[0]:
        number_format = formats.get(_keys(path))
        if number_format and _is_weight(wanted) and number_format != wanted.number_format:
            raise InputError(
                "number format of the target",
                file=file,
                tensor=".".join(_keys(path)),
                expected=wanted.number_format,
                found=number_format,
            )


def _is_weight(node: Any) -> bool:
    return isinstance(node, QuantizedTensor)


def _leaves(tree: Any) -> Iterator[tuple[Keys, Any]]:
    for path, node in structure.walk(tree):
        if node is not None and not isinstance(node, structure.BRANCHES):
            yield _texts(path), node


def _texts(path: structure.Path) -> Keys:
    return tuple(map(str, path))


def _keys(path: tuple) -> Keys:
    return tuple(trees.leaf_name((key,)) for key in path)


def _fitted(name: str, leaf: Any, target: Any, file: Path) -> Any:
    """A leaf with the type and the sharding of the target's."""

    def differs(what: str, expected: Any, found: Any) -> InputError:
        return InputError(
            f"{what} of the target", file=file, tensor=name, expected=expected, found=found
        )

    if trees.is_python(target) or trees.is_python(leaf):
        number = _number(leaf, target)
        if number is None:
            raise differs("leaf", _told(target), _told(leaf))
        return number
    if not isinstance(leaf, CompressedTensor) or not hasattr(target, "dtype"):
        raise differs("leaf", _told(target), _told(leaf))
    is_packed = is_compressed(target)
    ours, theirs = placing.struct(leaf), placing.struct(target) if is_packed else target
    if ours.dtype != theirs.dtype:
        raise differs("dtype", theirs.dtype, ours.dtype)
    if ours.shape != tuple(theirs.shape):
        raise differs("shape", list(theirs.shape), list(ours.shape))
    numpy = target.header.numpy if is_packed else isinstance(target, np.ndarray | np.generic)
    sharding = getattr(target, "sharding", None)
    rule = sharding if isinstance(sharding, jax.sharding.Sharding) else None
    return dataclasses.replace(
        leaf,
        header=dataclasses.replace(leaf.header, numpy=numpy, scalar=False),
        sharding=placing.fitting(leaf, rule, name),
    )


def _number(leaf: Any, target: Any) -> Any:
    """A number or a text of Python's where the target or the leaf is one; None if it does not fit.

    A number and an array of no dimensions stand for each other where no bit is lost.
    """
    if trees.is_python(leaf) and trees.is_python(target):
        return leaf if type(leaf) is type(target) else None
    array = leaf if isinstance(leaf, CompressedTensor) else target
    number = target if isinstance(leaf, CompressedTensor) else leaf
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape != () or not isinstance(dtype, np.dtype) or type(number) not in KINDS:
        return None
    kind = "f" if jnp.issubdtype(dtype, jnp.floating) else dtype.kind
    if kind not in KINDS[type(number)]:
        return None
    if isinstance(leaf, CompressedTensor):
        return dataclasses.replace(leaf, header=dataclasses.replace(leaf.header, scalar=True))
    try:
        value = np.asarray(leaf, dtype)
    except OverflowError:
        return None
    if value.item() != leaf and leaf == leaf:
        return None
    numpy = isinstance(target, np.ndarray | np.generic)
    return trees.compress(value if numpy else jnp.asarray(value))


def _told(leaf: Any) -> str:
    if isinstance(leaf, CompressedTensor) and leaf.header.key:
        return f"random keys of {leaf.header.key}"
    if hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return f"{type(leaf).__name__} {leaf!r:.40}"
