"""What a layout packs: a stack of matrices, as codes and parameters of one format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jentropy import formats
from jentropy.codecs import buffers
from jentropy.formats import WHOLE, Format

PLACES = 1 << 10  # that the smallest program of `at_places` takes
Packed = tuple[dict[str, Any], dict[str, int]]  # arrays, and the sizes that programs must know


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrices:
    """Codes of matrices, JAX arrays or `jax.ShapeDtypeStruct`.

    Invariants: `codes["code"]` is [*stack, rows, columns] (or what the format's decoder has), every
    parameter [*stack, r, c] with r and c entries for the blocks of rows and columns; blocks of
    `number_format` have two axes. Arrays of its steps have the stack in front.
    """

    number_format: Format
    codes: Mapping[str, Any]

    @property
    def stack(self) -> tuple[int, ...]:
        """Leading axes."""
        return tuple(self.codes["code"].shape[:-2])

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.number_format.shape(self.codes["code"].shape)[-2:]
        return rows, columns

    @property
    def each(self) -> Array:
        """Element codes [matrices, rows, columns]."""
        return self.codes["code"].reshape(-1, *self.matrix)

    @classmethod
    def of(cls, weight: formats.QuantizedTensor) -> Matrices:
        """Matrices of a weight of two axes or more."""
        parameters = weight.number_format.parameters
        rank, stack = len(weight.codes["code"].shape), weight.codes["code"].shape[:-2]
        blocks = tuple(dataclasses.replace(p, block=p.blocks(rank)[-2:]) for p in parameters)

        def by_matrix(codes: Mapping[str, Any]) -> dict[str, Any]:
            made = {"code": on_device(codes["code"])}
            for parameter in parameters:
                array = on_device(codes[parameter.name])
                made[parameter.name] = _of_each(array, parameter.blocks(rank), stack)
            for side in weight.number_format.side_arrays:
                made[side.name] = on_device(codes[side.name])
            groups = codes.get(formats.GROUP_INDEX)
            if groups is not None and not _in_runs(groups, blocks):
                groups = jnp.asarray(groups)
                made[formats.GROUP_INDEX] = jnp.broadcast_to(groups, (*stack, *groups.shape))
            return made

        number_format = dataclasses.replace(weight.number_format, parameters=blocks)
        return cls(number_format=number_format, codes=computed(by_matrix, weight.codes))

    def transposed(self) -> Matrices:
        """The transposed matrices."""

        def swapped(codes: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: array if name == formats.GROUP_INDEX else jnp.swapaxes(array, -1, -2)
                for name, array in codes.items()
            }

        parameters = tuple(
            dataclasses.replace(p, block=p.blocks(2)[::-1]) for p in self.number_format.parameters
        )
        number_format = dataclasses.replace(self.number_format, parameters=parameters)
        return Matrices(number_format=number_format, codes=computed(swapped, self.codes))

    def filled(self, shapes: Packed, arrays: Mapping[str, Any]) -> Packed:
        """Arrays as `shapes` say, and others that numbers decide: their first axis is `each`'s.

        On the host where they are NumPy's: what JAX does with a new shape is compiled.
        """
        made, planned = {}, shapes[0]
        for name, array in arrays.items():
            shape = planned[name].shape if name in planned else (*self.stack, *array.shape[1:])
            array = array if array.shape == shape else array.reshape(shape)
            made[name] = array if isinstance(array, jax.Array) else jax.device_put(array)
        return made, shapes[1]


def computed(function: Callable[[Any], Any], codes: Any) -> Any:
    """What a function makes of arrays; without data if they have none."""
    return jax.eval_shape(function, codes) if is_abstract(codes) else function(codes)


def is_abstract(arrays: Any) -> bool:
    """Whether a pytree has shapes and dtypes only."""
    leaves = jax.tree.leaves(arrays)
    return bool(leaves) and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def _of_each(array: Array, blocks: tuple[int, ...], stack: tuple[int, ...]) -> Array:
    """A parameter with entries for each matrix of a stack, however many shared them."""
    for axis, (block, size) in enumerate(zip(blocks[:-2], stack, strict=True)):
        if block == WHOLE and size != 1:
            array = jnp.broadcast_to(array, (*array.shape[:axis], size, *array.shape[axis + 1 :]))
        elif block > 1:
            array = jnp.repeat(array, block, axis=axis, total_repeat_length=size)
    return array


def _in_runs(groups: Any, parameters: Sequence[formats.Parameter]) -> bool:
    """Whether groups of columns are the parameters' blocks anyway (GPTQ without act-order).

    Not of groups without data.
    """
    if isinstance(groups, jax.core.Tracer):
        return False
    columns = np.arange(len(groups))
    blocks = {p.block[-1] if p.block else WHOLE for p in parameters if p.of is None}
    return all(
        np.array_equal(groups, columns // block if block != WHOLE else 0 * columns)
        for block in blocks
    )


def on_device(array: Any) -> Any:
    """An array of JAX's. One of the host is copied: on CPU, JAX takes what it is given as it lies.

    What JAX itself copies, of a new shape, is compiled.
    """
    if not isinstance(array, np.ndarray):
        return jnp.asarray(array)
    copied = buffers.empty(array.shape, array.dtype)
    copied[...] = array
    return jax.device_put(copied)


def at_places(codes: Array, *index: np.ndarray) -> np.ndarray:
    """Codes at a few places, 0 outside; a program serves a power of four of them, not one number.

    Args:
      index: int[places] for each axis, 0 or more.

    Example:
      >>> codes = jnp.arange(6, dtype=jnp.uint8).reshape(2, 3)
      >>> at_places(codes, np.array([1, 2]), np.array([2, 0]))
      array([5, 0], dtype=uint8)
    """
    count, room = index[0].size, PLACES
    while room < count:
        room *= 4
    filled = (np.pad(axis, (0, room - count)).astype(np.int32) for axis in index)
    return np.asarray(_at_places(codes, *filled))[:count]


@jax.jit
def _at_places(codes: Array, *index: Array) -> Array:
    return codes.at[index].get(mode="fill", fill_value=0)


def sized(dtype: Any, *shape: int) -> Any:
    """An array without data."""
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))


def padded(array: Array, rows: int, columns: int) -> Array:
    """A matrix with zeros up to multiples of rows and columns."""
    return jnp.pad(array, ((0, -array.shape[0] % rows), (0, -array.shape[1] % columns)))
