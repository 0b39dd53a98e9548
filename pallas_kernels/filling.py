"""Stacks that are filled in place, one matrix after the other, so that no stack is ever held twice.

On a CPU they are arrays of the host until they are full, which JAX then takes as they lie: what it
writes itself, it compiles for every shape.

Matrices of a stack share everything that a compiled program knows of them (`likeness`). Lists that
depend on numbers, window12's escapes, are filled up to the longest of the stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jentropy.codecs import buffers

from .resident import ResidentTensor


def likeness(weight: ResidentTensor | jax.Array) -> Hashable:
    """What the weights of a stack have in common, hashable: all but the sizes of lists.

    Args:
      weight: a single matrix, or any array.

    Example:
      >>> import jax.numpy as jnp
      >>> likeness(jnp.ones((2, 3))) == likeness(jnp.zeros((2, 3)))
      True
    """
    if not isinstance(weight, ResidentTensor):
        return weight.dtype, weight.shape
    lists, largest = weight.record.lists, weight.record.largest
    arrays = [
        (name, array.dtype, None if name in lists else array.shape)
        for name, array in sorted(weight.arrays.items())
    ]
    options = [(name, n) for name, n in weight.options if name not in largest]
    rest = weight.layout, weight.number_format, weight.logical, weight.transposed
    return *rest, *arrays, *options


def put(
    stack: ResidentTensor | jax.Array | np.ndarray | None,
    axes: tuple[int, ...],
    index: tuple[int, ...],
    weight: ResidentTensor | jax.Array,
    only: jax.Array | None = None,
) -> ResidentTensor | jax.Array | np.ndarray:
    """A stack with one more of its weights; the memory of the stack that was given is used for it.

    Args:
      stack: what `put` gave last; None: nothing.
      axes: sizes of the stack's axes; none: there is one weight, which is given back.
      index: which weight of the stack it is.
      weight: alike (`likeness`) all others of the stack.
      only: bool[parts], of weights `side_by_side`: which of them are written; None: all.

    Returns:
      The stack, [*axes, *shape of the weight]; zeros where no weight was put yet. `placed` makes
      JAX's arrays of it.

    Example:
      >>> import jax.numpy as jnp
      >>> stack = placed(put(None, (3,), (2,), jnp.ones((2, 2))))
      >>> stack.shape, float(stack.sum())
      ((3, 2, 2), 4.0)
    """
    if not axes:
        return weight
    arrays = _parts(weight)
    if on_host := all(map(_is_of_host, arrays.values())):
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
    if stack is None:
        stacked = _zeros_on_host(arrays, axes) if on_host else _empty(arrays, axes)
    else:
        stacked = _parts(stack)
    lists = weight.record.lists if isinstance(weight, ResidentTensor) else {}
    for name in lists.keys() & arrays.keys():
        axis, filler = lists[name]
        most = max(arrays[name].shape[axis], stacked[name].shape[axis])
        arrays[name] = filled_up(arrays[name], axis, most, filler)
        stacked[name] = filled_up(stacked[name], axis, most, filler)
    if on_host:
        for name, array in arrays.items():
            stacked[name][index] = array
        filled = stacked
    else:
        filled = _write(stacked, arrays, np.array(index, np.int32), only)
    if not isinstance(weight, ResidentTensor):
        return filled[""]
    before = stack.options if isinstance(stack, ResidentTensor) else weight.options
    return replace(weight, arrays=filled, options=tuple(map(max, before, weight.options)))


def placed(stack: ResidentTensor | jax.Array | np.ndarray) -> ResidentTensor | jax.Array:
    """What `put` gave last, of JAX's arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> isinstance(placed(jnp.ones(3)), jax.Array)
      True
    """
    return jax.tree.map(lambda a: a if isinstance(a, jax.Array) else jax.device_put(a), stack)


def _parts(weight: ResidentTensor | jax.Array | np.ndarray) -> dict[str, Any]:
    return dict(weight.arrays) if isinstance(weight, ResidentTensor) else {"": weight}


def _is_of_host(array: jax.Array) -> bool:
    """Whether an array is in memory that the host can write: that of one CPU device."""
    return all(device.platform == "cpu" for device in array.devices()) and not isinstance(
        array.sharding, NamedSharding
    )


def _zeros_on_host(arrays: dict[str, np.ndarray], axes: tuple[int, ...]) -> dict[str, np.ndarray]:
    made = {name: buffers.empty((*axes, *a.shape), a.dtype) for name, a in arrays.items()}
    for array in made.values():
        array.fill(0)
    return made


def _empty(arrays: dict[str, jax.Array], axes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Zeros for stacks of arrays, on the device that each is on, or split as it is."""

    def place(array: jax.Array) -> jax.sharding.Sharding:
        if not isinstance(array.sharding, NamedSharding):
            return array.sharding
        spec = PartitionSpec(*(None for _ in axes), *array.sharding.spec)
        return NamedSharding(array.sharding.mesh, spec)

    shapes = {n: jax.ShapeDtypeStruct((*axes, *a.shape), a.dtype) for n, a in arrays.items()}
    places = {name: place(array) for name, array in arrays.items()}
    return _zeros(tuple(shapes.items()), tuple(places.items()))()


@lru_cache
def _zeros(
    shapes: tuple[tuple[str, jax.ShapeDtypeStruct], ...],
    places: tuple[tuple[str, jax.sharding.Sharding], ...],
) -> Callable[[], dict[str, jax.Array]]:
    """One program for all arrays of a stack: compiling costs more than running does."""
    return jax.jit(
        lambda: {name: jnp.zeros(one.shape, one.dtype) for name, one in shapes},
        out_shardings=dict(places),
    )


@partial(jax.jit, donate_argnums=0)
def _write(
    stacked: dict[str, jax.Array],
    arrays: dict[str, jax.Array],
    index: jax.Array,
    only: jax.Array | None,
) -> dict[str, jax.Array]:
    def one(stack: jax.Array, array: jax.Array) -> jax.Array:
        where = (*index, *(np.int32(0) for _ in array.shape))
        new = array[(None,) * index.size]
        if only is not None:
            before = jax.lax.dynamic_slice(stack, where, new.shape)
            kept = only.reshape(-1, *(1,) * (array.ndim - 1))
            new = jnp.where(kept, new, before)
        return jax.lax.dynamic_update_slice(stack, new, where)

    return jax.tree.map(one, stacked, arrays)


def side_by_side(
    weights: Mapping[jax.Device, ResidentTensor | jax.Array],
    mesh: Mesh,
    axes: tuple[str, ...] | None,
) -> ResidentTensor | jax.Array:
    """What devices of a mesh have as one weight over it: its parts, or the same on all.

    Args:
      weights: of every device of this process, alike; lists are filled up to the longest.
      mesh: of these devices, those of other processes may be among them.
      axes: of the mesh, along which parts lie; none: all devices have the one part; None: the
        weight has no axis of parts.

    Returns:
      [*stack, parts, ...]: parts come after the stacks that the weights are.
    """
    held = {device: _parts(weight) for device, weight in weights.items()}
    first = next(iter(weights.values()))
    count = math.prod(mesh.shape[axis] for axis in axes or ())
    leading = len(first.shape) - 2

    def joined(name: str) -> jax.Array:
        arrays = {device: parts[name] for device, parts in held.items()}
        if isinstance(first, ResidentTensor) and name in first.record.lists:
            axis, filler = first.record.lists[name]
            most = max(array.shape[axis] for array in arrays.values())
            arrays = {d: filled_up(array, axis, most, filler) for d, array in arrays.items()}
        shape = list(next(iter(arrays.values())).shape)
        spec = PartitionSpec()
        if axes is not None:
            arrays = {d: jnp.expand_dims(array, leading) for d, array in arrays.items()}
            shape.insert(leading, count)
            spec = PartitionSpec(*(None for _ in range(leading)), axes or None)
        own = [jax.device_put(array, device) for device, array in arrays.items()]
        place = NamedSharding(mesh, spec)
        return jax.make_array_from_single_device_arrays(tuple(shape), place, own)

    made = {name: joined(name) for name in _parts(first)}
    if not isinstance(first, ResidentTensor):
        return made[""]
    options = (w.options for w in weights.values() if isinstance(w, ResidentTensor))
    largest = tuple(map(max, *options)) if len(weights) > 1 else first.options
    return replace(first, arrays=made, options=largest)


def filled_up(array: Any, axis: int, size: int, filler: tuple[int, ...]) -> Any:
    """An array of NumPy's or JAX's, with `filler`, over and over, up to a size of an axis."""
    xp: Any = np if isinstance(array, np.ndarray) else jnp
    shape = list(array.shape)
    shape[axis] = size - array.shape[axis]
    if not shape[axis]:
        return array
    column = np.resize(np.array(filler, array.dtype), shape[axis]).reshape(-1, *(1,) * (-axis - 1))
    return xp.concatenate((array, xp.broadcast_to(column, shape)), axis)
