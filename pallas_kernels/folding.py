"""Arrays of any axes, folded to the matrices that they are multiplied as, in a backend's layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jentropy import formats, modes
from jentropy.errors import InputError
from jentropy.formats import Format, QuantizedTensor

from .backends import default_for
from .laying_out import lay_out
from .matrices import computed, is_abstract
from .resident import ResidentTensor
from .resident_array import ResidentArray


@modes.detached
def resident_array(
    values: Any,
    summed: Sequence[int],
    given: Sequence[int],
    backend: str | None = None,
    *,
    number_format: Format | None = None,
) -> ResidentArray | None:
    """An array in a backend's layout.

    Args:
      values: numbers [*stack, *axes of the matrix], an array or a `jax.ShapeDtypeStruct`. Float32
        numbers that are all BF16 ones, as of a model that was saved in BF16, rest as BF16.
      summed: axes of the matrix, counted without the stack, that products sum over.
      given: all others, which products give.
      backend: see `to_resident`.
      number_format: what numbers are rounded to: a plain format, or one with scales, whose blocks
        are of the matrix [given, summed], as in checkpoints. None: nothing is lost.

    Returns:
      The array; None where no layout makes it smaller.

    Raises:
      InputError: axes that are not those of a matrix, no format.

    Example:
      >>> import jax.numpy as jnp
      >>> resident_array(jnp.ones((4, 8, 256)), [0, 1], [2], "reference").weight.shape
      (32, 256)
    """
    if number_format is not None:
        formats.expect_format(number_format)
    summed, given = tuple(summed), tuple(given)
    stack, dtype = len(values.shape) - len(summed) - len(given), jnp.dtype(values.dtype)
    axes = sorted((*summed, *given)) == list(range(len(summed) + len(given)))
    if not (summed and given and axes and stack >= 0):
        raise InputError(
            "axes of a matrix",
            expected="all but those of the stack, each once",
            found=f"{list(summed)} and {list(given)} of {list(values.shape)}",
        )
    scaled = number_format is not None and bool(number_format.parameters)
    as_it_lies = not scaled and summed + given == tuple(range(len(summed) + len(given)))
    rows, columns = (summed, given) if as_it_lies else (given, summed)
    sizes = tuple(values.shape[stack:])

    def folded(values: Array) -> Array:
        turned = values.transpose(*range(stack), *(stack + axis for axis in (*rows, *columns)))
        return turned.reshape(*turned.shape[:stack], math.prod(sizes[axis] for axis in rows), -1)

    weight = computed(folded, values if is_abstract(values) else jnp.asarray(values))
    if number_format is not None:
        weight = _rounded(weight, number_format)
    elif dtype == jnp.float32 and not is_abstract(weight):
        narrow = weight.astype(jnp.bfloat16)
        weight = narrow if _same_bits(narrow.astype(jnp.float32), weight) else weight
    laid = lay_out(weight, backend or default_for(weight), -2 if as_it_lies else -1)
    if not isinstance(laid, ResidentTensor):
        return None
    return ResidentArray(weight=laid, sizes=sizes, rows=rows, columns=columns, dtype=dtype)


def _rounded(matrix: Any, number_format: Format) -> Any:
    """Numbers in a format."""
    if not number_format.parameters:
        return computed(lambda matrix: matrix.astype(number_format.element.dtype), matrix)
    codes = computed(lambda matrix: formats.quantize(matrix, number_format), matrix)
    return QuantizedTensor(number_format=number_format, codes=codes)


def _same_bits(a: Array, b: Array) -> bool:
    """Whether arrays of float32 are the same, NaN and -0 included."""
    codes = [jax.lax.bitcast_convert_type(array, jnp.uint32) for array in (a, b)]
    return bool((codes[0] == codes[1]).all())
