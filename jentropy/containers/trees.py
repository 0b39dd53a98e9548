"""Pytrees of arrays to pytrees of archived tensors and back."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy import modes
from jentropy.errors import InputError, UnsupportedError

from . import coder, drafting, on_device
from .chunks import coded_chunks
from .placing import with_sharding as with_sharding
from .slices import decompress_slice
from .tensor import Chunk, CompressedTensor, TensorHeader, first_twice, is_compressed, is_storable

PYTHON = (bool, int, float, complex, str)  # leaves that stay as they are


def leaf_name(path: tuple) -> str:
    """A leaf's path in its tree, dotted; a bare array's is empty.

    Example:
      >>> leaf_name(("layers", 0, "w")), leaf_name(())
      ('layers.0.w', '')
    """
    return jax.tree_util.keystr(path, simple=True, separator=".")


def leaf_names(paths: Iterable[tuple]) -> list[str]:
    """Dotted paths of leaves; where two read alike, keys that have dots stand in brackets.

    Raises:
      InputError: two leaves that read alike even so.

    Example:
      >>> leaf_names([("a.b",), ("a", "b"), ("c.d",)])
      ["['a.b']", 'a.b', 'c.d']
    """
    paths = list(paths)
    names = [leaf_name(path) for path in paths]
    often = Counter(names)
    if len(often) == len(names):
        return names
    for i, path in enumerate(paths):
        if often[names[i]] > 1:
            keys = [leaf_name((key,)) for key in path]
            names[i] = ".".join(f"[{key!r}]" if "." in key else key for key in keys)
    if (twice := first_twice(names)) is not None:
        raise InputError("two leaves of the pytree have this path", tensor=twice)
    return names


def is_python(leaf: Any) -> bool:
    """Whether a leaf is a number or a text of Python's, which is not compressed.

    Example:
      >>> is_python(3.5), is_python(np.float32(3.5))
      (True, False)
    """
    return type(leaf) in PYTHON


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys.

    Example:
      >>> is_key(jax.random.key(0)), is_key(jax.random.key_data(jax.random.key(0)))
      (True, False)
    """
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def compress(pytree: Any) -> Any:
    """Archives every array of a pytree, without losing a bit of any.

    Floats are entropy coded by their fields, every other dtype by its bytes or half bytes; what
    would not shrink is stored. NumPy arrays come back as NumPy, JAX arrays as JAX, typed random
    keys as such.

    Args:
      pytree: NumPy or JAX arrays of any shape and numeric dtype (NumPy scalars become arrays of no
        dimensions); numbers and texts of Python's, and leaves that are compressed already, stay.

    Returns:
      The same tree of `CompressedTensor`. Orbax refuses to store it: its headers are no arrays.
      `jentropy.save` does.

    Raises:
      InputError: a leaf that is no numeric array, by its path; dicts whose keys JAX cannot sort;
        inside of `jax.jit`.

    Example:
      >>> import numpy as np, jentropy
      >>> tree = {"w": np.arange(6, dtype=np.float16).reshape(2, 3)}
      >>> packed = jentropy.compress(tree)
      >>> jentropy.decompress(packed)["w"].tolist()
      [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    leaves, structure = flatten(pytree)
    packed: list[Any] = [leaf for _, leaf in leaves]
    makers = {
        i: partial(_original, leaf_name(path), leaf)
        for i, (path, leaf) in enumerate(leaves)
        if not is_compressed(leaf) and not is_python(leaf)
    }
    coded: dict[drafting.Draft, list[tuple[Chunk, np.ndarray]]] = {}
    sizes = (getattr(packed[i], "nbytes", 0) for i in makers)
    for draft, chunks in coder.encode(drafting.drafts(makers.values(), sizes)):
        coded.setdefault(draft, []).extend(chunks)
    for i, (draft, chunks) in zip(makers, coded.items(), strict=True):
        payloads = [payload for _, payload in chunks]
        if len(payloads) > 1 or not all(payload.flags.owndata for payload in payloads):
            payloads = [np.concatenate(payloads)]  # what is a view may be of the leaf itself
        packed[i] = CompressedTensor(
            payload=tuple(payloads),
            header=draft.header([chunk for chunk, _ in chunks]),
        )
    return jax.tree_util.tree_unflatten(structure, packed)


def flatten(pytree: Any) -> tuple[list[tuple[tuple[Any, ...], Any]], Any]:
    """Leaves of a pytree, arrays or compressed ones, with their paths, and its structure.

    Raises:
      InputError: dicts whose keys JAX cannot sort.

    Example:
      >>> leaves, structure = flatten({"a": 1, "b": [2]})
      >>> [(leaf_name(path), leaf) for path, leaf in leaves]
      [('a', 1), ('b.0', 2)]
    """
    try:
        return jax.tree_util.tree_flatten_with_path(pytree, is_leaf=is_compressed)
    except ValueError as error:
        raise InputError(f"pytree: {error}", hint="keys of a dict are of one type") from error


def _original(name: str, leaf: Any) -> drafting.Original:
    numpy, key = not isinstance(leaf, jax.Array), key_implementation(leaf, name)
    return drafting.Original(name, as_array(leaf, name), numpy=numpy, key=key)


def key_implementation(leaf: Any, name: str = "") -> str:
    """Of an array of typed random keys; empty for any other leaf.

    Raises:
      InputError: keys of an implementation that JAX does not know by name.

    Example:
      >>> key_implementation(jax.random.key(0, impl="rbg")), key_implementation(jnp.ones(2))
      ('rbg', '')
    """
    if not is_key(leaf):
        return ""
    implementation = str(jax.random.key_impl(leaf))
    try:
        jax.random.wrap_key_data(jax.random.key_data(leaf), impl=implementation)
    except (ValueError, TypeError) as error:
        raise InputError(
            "implementation of random keys",
            tensor=name,
            expected="one that JAX knows by its name",
            found=implementation,
        ) from error
    return implementation


def as_array(leaf: Any, name: str = "") -> np.ndarray:
    """A leaf as a contiguous NumPy array of native byte order; of random keys their data.

    Raises:
      InputError: a leaf that is no numeric array, by `name`.

    Example:
      >>> as_array(jnp.ones((2, 3), jnp.bfloat16)).dtype.name
      'bfloat16'
    """
    if isinstance(leaf, jax.core.Tracer):
        raise modes.traced("compress outside of them").at(tensor=name or None)
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    elif isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
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

    Example:
      >>> import jentropy
      >>> decompress(jentropy.compress({"w": np.arange(3)}))["w"].tolist()
      [0, 1, 2]
    """
    return decompress_where(packed, lambda t: on_accelerator(t) and not t.header.numpy)


def on_accelerator(tensor: CompressedTensor) -> bool:
    """Whether the default device decodes a tensor: one of codec `context`, unless that is a CPU.

    Example:
      >>> import jentropy
      >>> on_accelerator(jentropy.compress(np.arange(3)))  # a stored tensor comes from the host
      False
    """
    return jax.default_backend() != "cpu" and on_device.decodes(tensor)


@modes.detached
def decompress_where(packed: Any, on_its_device: Callable[[CompressedTensor], bool]) -> Any:
    """`decompress`, some of the tensors on the default device, as JAX arrays.

    Args:
      on_its_device: says which, of those that `on_device` decodes and that have no sharding.

    Example:
      >>> import jentropy
      >>> packed = jentropy.compress({"w": np.arange(3)})
      >>> decompress_where(packed, lambda tensor: False)["w"].tolist()
      [0, 1, 2]
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(packed, is_leaf=is_compressed)
    out: list[Any] = [leaf for _, leaf in leaves]
    names = {i: leaf_name(path) for i, (path, leaf) in enumerate(leaves) if is_compressed(leaf)}
    spread = {i: name for i, name in names.items() if out[i].sharding is not None}
    there = {
        i: name
        for i, name in names.items()
        if i not in spread and not out[i].header.key and on_its_device(out[i])
    }
    here = {i: name for i, name in names.items() if i not in spread and i not in there}

    decoded = coder.decode(
        item
        for name, tensor in [(name, out[i]) for i, name in here.items()]
        for item in coded_chunks(name, tensor, together=True)
    )
    for i in here:
        header = out[i].header
        out[i] = as_it_was(coder.assemble(decoded, header), header)
    tensors = [out[i] for i in there]
    for i, array in zip(there, on_device.decompress(tensors, list(there.values())), strict=True):
        out[i] = array
    for i, name in spread.items():
        out[i] = _shards(out[i], name)
    return jax.tree_util.tree_unflatten(structure, out)


def as_it_was(values: np.ndarray, header: TensorHeader) -> Any:
    """Decoded values as the leaf that they were.

    Args:
      values: of the header's dtype and shape.

    Example:
      >>> import jentropy
      >>> as_it_was(np.arange(2), jentropy.compress(np.arange(2)).header).tolist()
      [0, 1]
    """
    if header.scalar and not values.shape:
        return values.item()
    if header.key:
        return jax.random.wrap_key_data(jnp.asarray(values), impl=header.key)
    fits = jax.dtypes.canonicalize_dtype(values.dtype) == values.dtype
    return values if header.numpy or not fits else jax.device_put(values)  # on CPUs no copy


def _shards(tensor: CompressedTensor, name: str) -> jax.Array:
    """A tensor where its sharding says; a device's part is decoded from its own chunks."""
    if jax.dtypes.canonicalize_dtype(tensor.dtype) != tensor.dtype:
        raise UnsupportedError(
            f"a sharded tensor of {tensor.dtype}",
            tensor=name,
            hint="JAX has 64 bits with jax_enable_x64 only",
        )
    assert tensor.sharding is not None
    if tensor.header.key:
        keys = decompress(dataclasses.replace(tensor, sharding=None))
        return jax.device_put(keys, tensor.sharding)
    return jax.make_array_from_callback(
        tensor.shape, tensor.sharding, lambda index: decompress_slice(tensor, index, name)
    )
