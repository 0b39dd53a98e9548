"""Where archived tensors will go: one sharding, or a tree of them, given to a pytree's tensors."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jentropy.errors import InputError

from .tensor import CompressedTensor, is_compressed

_TEMPLATES = (jax.ShapeDtypeStruct, jax.Array)  # shape, dtype and sharding in one
Keys = tuple[Any, ...]


def with_sharding(packed: Any, sharding: Any) -> Any:
    """The same pytree; `decompress` will put its tensors where `sharding` says.

    Args:
      sharding: a `jax.sharding.Sharding`, None for the default, a `jax.ShapeDtypeStruct` or array
        that has the tensor's shape and dtype, or a pytree of these: one stands for all that is
        below its place. A tensor of no dimensions is copied to all devices of a `NamedSharding`.

    Raises:
      InputError: a sharding that does not fit its tensor, a tensor without one, or one that no
        tensor has the place of; all by name.

    Example:
      >>> import jentropy
      >>> packed = {"w": jentropy.compress(np.ones((4, 2), np.float32))}
      >>> device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      >>> with_sharding(packed, {"w": device})["w"].sharding == device
      True
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(sharding, is_leaf=_is_rule)
    rules = {_keys(path): rule for path, rule in leaves}
    unused: dict[Keys | None, str] = {
        _keys(path): jax.tree_util.keystr(path) for path, rule in leaves if rule is not None
    }

    def place(path: Any, leaf: Any) -> Any:
        keys, name = _keys(path), jax.tree_util.keystr(path, simple=True, separator=".")
        above = next((keys[:i] for i in range(len(keys) + 1) if keys[:i] in rules), None)
        unused.pop(above, None)
        if not is_compressed(leaf):  # a number or a text, which is nowhere
            return leaf
        if above is None:
            raise InputError("sharding", tensor=name, expected="one, or None", found="no such key")
        return dataclasses.replace(leaf, sharding=fitting(leaf, rules[above], name))

    placed = jax.tree_util.tree_map_with_path(place, packed, is_leaf=is_compressed)
    if unused and rules.keys() != {()}:
        raise InputError(
            "sharding", expected="keys of tensors", found=f"{next(iter(unused.values()))}, of none"
        )
    return placed


def _is_rule(value: Any) -> bool:
    return value is None or isinstance(value, (jax.sharding.Sharding, *_TEMPLATES))


def _keys(path: Any) -> Keys:
    """A path without the kinds of its containers."""
    return tuple(map(_key, path))


def _key(key: Any) -> Any:
    values = (getattr(key, name, None) for name in ("key", "name", "idx"))
    return next((value for value in values if value is not None), key)


@lru_cache
def key_struct(implementation: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """An array of random keys, by the shape of its data.

    Args:
      implementation: of the keys, as `jax.random.key_impl` gives it.
      shape: of the data, uint32.

    Example:
      >>> key_struct("threefry2x32", (5, 2)).shape
      (5,)
    """
    data = jax.ShapeDtypeStruct(shape, np.uint32)
    return jax.eval_shape(lambda d: jax.random.wrap_key_data(d, impl=implementation), data)


def struct(tensor: CompressedTensor) -> Any:
    """What has shape and dtype of the array that a tensor decompresses to.

    Args:
      tensor: an archived tensor; of random keys it holds their data.

    Returns:
      The tensor itself, or a `jax.ShapeDtypeStruct` of random keys.

    Example:
      >>> import jax, jentropy
      >>> struct(jentropy.compress(jax.random.key(0))).shape
      ()
    """
    key = tensor.header.key
    return key_struct(key, tuple(tensor.shape)) if key else tensor


def fitting(tensor: CompressedTensor, rule: Any, name: str) -> jax.sharding.Sharding | None:
    """The sharding that a rule gives to a tensor.

    Raises:
      InputError: one that does not fit it, by `name`.

    Args:
      rule: see `with_sharding`.

    Example:
      >>> import jentropy
      >>> packed = jentropy.compress(np.ones((4, 2), np.float32))
      >>> fitting(packed, jax.ShapeDtypeStruct((4, 2), np.float32), "w") is None
      True
    """
    target = struct(tensor)
    if isinstance(rule, _TEMPLATES):
        expected, found = (tuple(rule.shape), rule.dtype), (tuple(target.shape), target.dtype)
        if expected != found:
            raise InputError("shape and dtype", tensor=name, expected=expected, found=found)
        rule = rule.sharding
    if rule is None:
        return None
    if not isinstance(rule, jax.sharding.Sharding):
        raise InputError(
            "sharding",
            tensor=name,
            expected="a jax.sharding.Sharding, ShapeDtypeStruct or None",
            found=f"{rule!r:.60}",
        )
    if isinstance(rule, jax.sharding.NamedSharding) and not target.shape:
        everywhere = jax.sharding.PartitionSpec()
        return jax.sharding.NamedSharding(rule.mesh, everywhere, memory_kind=rule.memory_kind)
    try:
        rule.shard_shape(tuple(target.shape))
        axes = len(getattr(rule, "spec", ()))
        if axes > len(target.shape):
            raise ValueError(f"{axes} axes")
        if not rule.device_set:
            raise ValueError("no device")
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(
            "sharding",
            tensor=name,
            expected=f"one that splits shape {list(target.shape)}",
            found=f"{rule!r:.120}: {str(error).partition(chr(10))[0]:.120}",
        ) from error
    return rule
