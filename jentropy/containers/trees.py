"""Pytrees of arrays to pytrees of archived tensors and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy import modes
from jentropy.errors import InputError, UnsupportedError

from . import coder, on_device
from .pieces import coded_chunks
from .placing import with_sharding as with_sharding
from .slices import decompress_slice
from .tensor import CompressedTensor, is_compressed, is_storable


def leaf_name(path: tuple) -> str:
    """A leaf's path in its tree, dotted; a bare array's is empty."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def compress(pytree: Any) -> Any:
    """Archives every array of a pytree, without losing a bit of any.

    Floats are entropy coded by their fields, every other dtype by its bytes or half bytes; what
    would not shrink is stored. NumPy arrays come back as NumPy, JAX arrays as JAX.

    Args:
      pytree: NumPy or JAX arrays of any shape and numeric dtype (NumPy and Python scalars become
        arrays of no dimensions); leaves that are compressed already stay.

    Returns:
      The same tree of `CompressedTensor`.

    Raises:
      InputError: a leaf that is no numeric array, by its path; inside of `jax.jit`.

    Example:
      >>> import numpy as np, jentropy
      >>> tree = {"w": np.arange(6, dtype=np.float16).reshape(2, 3)}
      >>> packed = jentropy.compress(tree)
      >>> jentropy.decompress(packed)["w"].tolist()
      [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(pytree, is_leaf=is_compressed)
    packed: list[Any] = [leaf for _, leaf in leaves]
    makers = {
        i: partial(_draft, leaf_name(path), leaf)
        for i, (path, leaf) in enumerate(leaves)
        if not is_compressed(leaf)
    }
    drafts: list[coder.Draft] = []
    parts: dict[int, list] = {}

    def kept() -> Iterator[coder.Draft]:
        for item in coder.drafts(makers.values()):
            drafts.append(item)
            parts[id(item)] = []
            yield item

    for item, chunks in coder.encode(kept()):
        parts[id(item)] += chunks
    for i, item in zip(makers, drafts, strict=True):
        chunks = parts[id(item)]
        payloads = [payload for _, payload in chunks]
        if len(payloads) > 1 or not all(payload.flags.owndata for payload in payloads):
            payloads = [np.concatenate(payloads)]  # what is a view may be of the leaf itself
        packed[i] = CompressedTensor(
            payload=tuple(payloads),
            header=item.header([chunk for chunk, _ in chunks]),
        )
    return jax.tree_util.tree_unflatten(structure, packed)


def _draft(name: str, leaf: Any) -> coder.Draft:
    return coder.draft(name, as_array(leaf, name), numpy=not isinstance(leaf, jax.Array))


def as_array(leaf: Any, name: str = "") -> np.ndarray:
    """A leaf as a contiguous NumPy array of native byte order.

    Raises:
      InputError: a leaf that is no numeric array, by `name`.
    """
    if isinstance(leaf, jax.core.Tracer):
        raise modes.traced("compress outside of them").at(tensor=name or None)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        raise InputError("leaf", tensor=name, expected="a numeric array", found=leaf.dtype)
    values = np.asarray(jax.device_get(leaf) if isinstance(leaf, jax.Array) else leaf)
    if not is_storable(values.dtype):
        found = f"{type(leaf).__name__} {leaf!r:.40}"
        raise InputError("leaf", tensor=name or None, expected="a numeric array", found=found)
    if not values.dtype.isnative:
        raise InputError(
            "leaf", tensor=name or None, expected="native byte order", found=values.dtype.str
        )
    return values if values.flags.c_contiguous else np.ascontiguousarray(values)


def decompress(packed: Any) -> Any:
    """The pytree that `compress` was given, bit for bit.

    Args:
      packed: a pytree; leaves that are not `CompressedTensor` stay as they are.

    Returns:
      The same tree of arrays: NumPy where NumPy went in, JAX arrays otherwise, and wherever `load`
      was given a sharding.

    Raises:
      ChecksumError, CorruptError: data that are not what was compressed.
    """
    return decompress_where(packed, lambda t: on_accelerator(t) and not t.header.numpy)


def on_accelerator(tensor: CompressedTensor) -> bool:
    """Whether the default device decodes a tensor: one of codec `context`, unless that is a CPU."""
    return jax.default_backend() != "cpu" and on_device.decodes(tensor)


@modes.detached
def decompress_where(packed: Any, on_its_device: Callable[[CompressedTensor], bool]) -> Any:
    """`decompress`, some of the tensors on the default device, as JAX arrays.

    Args:
      on_its_device: says which, of those that `on_device` decodes and that have no sharding.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(packed, is_leaf=is_compressed)
    out: list[Any] = [leaf for _, leaf in leaves]
    names = {i: leaf_name(path) for i, (path, leaf) in enumerate(leaves) if is_compressed(leaf)}
    spread = {i: name for i, name in names.items() if out[i].sharding is not None}
    there = {i: n for i, n in names.items() if i not in spread and on_its_device(out[i])}
    here = {i: name for i, name in names.items() if i not in spread and i not in there}

    decoded = coder.decode(
        item
        for name, tensor in [(name, out[i]) for i, name in here.items()]
        for item in coded_chunks(name, tensor, whole=True)
    )
    for i in here:
        values = coder.assemble(decoded, out[i].header)
        fits = jax.dtypes.canonicalize_dtype(values.dtype) == values.dtype
        out[i] = values if out[i].header.numpy or not fits else jnp.asarray(values)
    tensors = [out[i] for i in there]
    for i, array in zip(there, on_device.decompress(tensors, list(there.values())), strict=True):
        out[i] = array
    for i, name in spread.items():
        out[i] = _shards(out[i], name)
    return jax.tree_util.tree_unflatten(structure, out)


def _shards(tensor: CompressedTensor, name: str) -> jax.Array:
    """A tensor where its sharding says; a device's part is decoded from its own chunks."""
    if jax.dtypes.canonicalize_dtype(tensor.dtype) != tensor.dtype:
        raise UnsupportedError(
            f"a sharded tensor of {tensor.dtype}",
            tensor=name,
            hint="JAX has 64 bits with jax_enable_x64 only",
        )
    assert tensor.sharding is not None
    return jax.make_array_from_callback(
        tensor.shape, tensor.sharding, lambda index: decompress_slice(tensor, index, name)
    )
