"""Reference layout of every block format: the codes themselves, and the parameters.

Codes of four bits lie two in a byte along a row, the first in the low half; an odd row ends with a
zero. Everything else is as `formats.dequantize` takes it. Every code survives.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from jentropy import formats
from jentropy.formats import Format
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed
from jentropy.pallas_kernels.resident import ResidentTensor

NIBBLE = 4


def holds(number_format: Format) -> bool:
    """Everything that has parameters; plain numbers rest dense."""
    return bool(number_format.parameters)


def pack(weight: Matrices) -> Packed:
    """Lays out codes of any format."""
    arrays = dict(weight.codes)
    if weight.number_format.element.code_bits == NIBBLE:
        codes = arrays["code"]
        codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
        arrays["code"] = codes[..., 0::2] | codes[..., 1::2] << NIBBLE
    return arrays, {}


def shapes(weight: Matrices) -> Packed:
    """What `pack` makes of codes without data."""

    def packed(codes: dict[str, Any]) -> dict[str, Any]:
        return pack(Matrices(number_format=weight.number_format, codes=codes))[0]

    return jax.eval_shape(packed, dict(weight.codes)), {}


def extent(weight: ResidentTensor) -> Extent:
    """Rows and columns."""
    return weight.logical, (1, 1)


def _codes(code: Array, weight: ResidentTensor) -> Array:
    if weight.number_format.element.code_bits != NIBBLE:
        return code
    pairs = jnp.stack([code & 0xF, code >> NIBBLE], axis=-1)
    return pairs.reshape(*code.shape[:-1], -1)[..., : weight.matrix[1]]


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The dense weight."""
    arrays = {**weight.arrays, "code": _codes(weight.arrays["code"], weight)}
    return formats.dequantize(weight.number_format, arrays, dtype)


def take(
    weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any
) -> Shaped[Array, "ids columns"]:
    """Rows of the weight."""
    number_format, arrays = weight.number_format, dict(weight.arrays)
    arrays["code"] = _codes(arrays["code"][ids], weight)
    for parameter in weight.number_format.parameters:
        rows, columns = parameter.blocks(2)
        # A row for each id: blocks of one row, however many shared an entry before.
        row = jnp.zeros_like(ids) if rows == formats.WHOLE else ids // rows
        arrays[parameter.name] = arrays[parameter.name][row]
        number_format = number_format.with_parameter(parameter.name, block=(1, columns))
    return formats.dequantize(number_format, arrays, dtype)


LAYOUT = Layout(
    name="reference_codes",
    backend="reference",
    stacked=("code", 2),
    holds=holds,
    shapes=shapes,
    pack=pack,
    extent=extent,
    decode=decode,
    take=take,
)
