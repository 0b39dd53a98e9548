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
from jentropy.formats import GROUP_INDEX, Format
from jentropy.pallas_kernels.resident import ResidentTensor

from .matrix import Matrices, Packed

NAME, BACKEND = "reference_codes", "reference"
REDUCES = None  # as it is stored, whatever products sum over
COLUMNS: dict[str, int] = {}  # arrays are whole on every device
ROWS = COLUMNS
STACKED = ("code", 2)  # an array, and the axes that it has for a single matrix
NIBBLE = 4


def holds(number_format: Format) -> bool:
    """Everything that has parameters; plain numbers rest dense."""
    return bool(number_format.parameters)


def extent(weight: ResidentTensor) -> tuple[int, int]:
    """Rows and columns."""
    return weight.logical


def pack(weight: Matrices) -> Packed:
    """Lays out codes of any format."""
    arrays = dict(weight.codes)
    if weight.number_format.element.code_bits == NIBBLE:
        codes = arrays["code"]
        codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
        arrays["code"] = codes[..., 0::2] | codes[..., 1::2] << NIBBLE
    return arrays, {}


def abstract(weight: Matrices) -> Packed:
    """What `pack` makes of codes without data."""

    def made(codes: dict[str, Any]) -> dict[str, Any]:
        return pack(Matrices(number_format=weight.number_format, codes=codes))[0]

    return jax.eval_shape(made, dict(weight.codes)), {}


def _codes(code: Array, weight: ResidentTensor) -> Array:
    if weight.number_format.element.code_bits != NIBBLE:
        return code
    pairs = jnp.stack([code & 0xF, code >> NIBBLE], axis=-1)
    return pairs.reshape(*code.shape[:-1], -1)[..., : weight.matrix[1]]


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "*shape"]:
    """The dense weight."""
    arrays = {**weight.arrays, "code": _codes(weight.arrays["code"], weight)}
    if GROUP_INDEX not in arrays or not weight.stack:
        return formats.dequantize(weight.number_format, arrays, dtype)
    groups = arrays.pop(GROUP_INDEX).reshape(-1, weight.matrix[1])[0]
    return formats.dequantize(weight.number_format, {**arrays, GROUP_INDEX: groups}, dtype)


def take_rows(
    weight: ResidentTensor, ids: Int[Array, "*batch"], dtype: Any
) -> Shaped[Array, "*batch columns"]:
    """Rows of a two-dimensional weight; only those rows are decoded."""
    flat = jnp.clip(ids.reshape(-1), 0, weight.matrix[0] - 1)
    arrays = {"code": _codes(weight.arrays["code"][flat], weight)}
    parameters = []
    for parameter in weight.number_format.parameters:
        block = parameter.block[0] if parameter.block else formats.WHOLE
        array = weight.arrays[parameter.name]
        # A row for each id: blocks of one row, however many shared an entry before.
        array = array[jnp.zeros_like(flat) if block == formats.WHOLE else flat // block]
        arrays[parameter.name] = array
        parameters.append(parameter.name)
    number_format = weight.number_format
    for name in parameters:
        columns = number_format.parameter(name).blocks(2)[1]
        number_format = number_format.with_parameter(name, block=(1, columns))
    if GROUP_INDEX in weight.arrays:
        arrays[GROUP_INDEX] = weight.arrays[GROUP_INDEX]
    rows = formats.dequantize(number_format, arrays, dtype)
    return rows.reshape(*ids.shape, weight.matrix[1])
