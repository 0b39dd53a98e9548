"""What a layout packs: a stack of matrices, as codes and parameters of one format."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from jentropy import formats
from jentropy.formats import WHOLE, Format
from jentropy.pallas_kernels.resident import ResidentTensor

ESCAPE_RATE = 1.6e-4 * 1.3  # of Gaussian weights, and room for those that are less so
Packed = tuple[dict[str, Any], dict[str, int]]  # arrays, and the sizes that programs must know


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrices:
    """Codes of matrices, JAX arrays.

    Invariants: `codes["code"]` is [*stack, rows, columns], every parameter [*stack, r, c] with r
    and c entries for the blocks of rows and columns; blocks of `number_format` have two axes.
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
        rows, columns = self.codes["code"].shape[-2:]
        return rows, columns

    @classmethod
    def of(cls, weight: formats.QuantizedTensor) -> Matrices:
        """Matrices of a weight of two axes or more."""
        given, number_format = weight.codes, weight.number_format
        shape = tuple(given["code"].shape)
        stack, rank = shape[:-2], len(shape)
        codes = {"code": jnp.asarray(given["code"])}
        parameters = []
        for parameter in number_format.parameters:
            array = jnp.asarray(given[parameter.name])
            blocks = parameter.blocks(rank)
            for axis, (block, size) in enumerate(zip(blocks[:-2], stack, strict=True)):
                if block == WHOLE and size != 1:
                    array = jnp.broadcast_to(
                        array, (*array.shape[:axis], size, *array.shape[axis + 1 :])
                    )
                elif block > 1:
                    array = jnp.repeat(array, block, axis=axis, total_repeat_length=size)
            codes[parameter.name] = array
            parameters.append(dataclasses.replace(parameter, block=blocks[-2:]))
        groups = given.get(formats.GROUP_INDEX)
        if groups is not None and not _in_runs(groups, parameters):
            groups = jnp.asarray(groups)
            codes[formats.GROUP_INDEX] = jnp.broadcast_to(groups, (*stack, *groups.shape))
        number_format = dataclasses.replace(number_format, parameters=tuple(parameters))
        return cls(number_format=number_format, codes=codes)

    @classmethod
    def abstract(cls, weight: formats.QuantizedTensor) -> Matrices:
        """The same of a weight whose codes are `jax.ShapeDtypeStruct`, as these are then."""
        found = []

        def make(codes: dict[str, Any]) -> Mapping[str, Any]:
            one = formats.QuantizedTensor(number_format=weight.number_format, codes=codes)
            found.append(cls.of(one))
            return found[0].codes

        codes = jax.eval_shape(make, dict(weight.codes))
        return cls(number_format=found[0].number_format, codes=codes)

    def turned(self) -> Matrices:
        """The transposed matrices."""
        parameters = tuple(
            dataclasses.replace(p, block=None if p.block is None else p.block[::-1])
            for p in self.number_format.parameters
        )
        codes = {
            name: array if name == formats.GROUP_INDEX else _swapped(array)
            for name, array in self.codes.items()
        }
        number_format = dataclasses.replace(self.number_format, parameters=parameters)
        return Matrices(number_format=number_format, codes=codes)


def _swapped(array: Any) -> Any:
    """An array, or its shape and dtype, with its last two axes exchanged."""
    if isinstance(array, jax.ShapeDtypeStruct):
        return sized(array.dtype, *array.shape[:-2], *array.shape[:-3:-1])
    return jnp.swapaxes(array, -1, -2)


def sized(dtype: Any, *shape: int) -> Any:
    """An array without data."""
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))


def escapes_of(weights: int) -> int:
    """Escapes that so many Gaussian weights have in window12, and some more."""
    return math.ceil(weights * ESCAPE_RATE)


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


def over_stack(
    weight: ResidentTensor, function: Callable[[ResidentTensor], Array]
) -> Shaped[Array, "*stack rows columns"]:
    """What a function of single matrices gives for every matrix of a stack."""
    for _ in weight.stack:
        function = jax.vmap(function)
    return function(weight)


def padded(array: Array, rows: int, columns: int) -> Array:
    """A matrix with zeros up to multiples of rows and columns."""
    return jnp.pad(array, ((0, -array.shape[0] % rows), (0, -array.shape[1] % columns)))
