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
from jentropy.pallas_kernels import row_blocks
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed
from jentropy.pallas_kernels.resident import ResidentTensor

NIBBLE = 4


def holds(number_format: Format) -> bool:
    """Everything that is more than numbers of a dtype, which rest dense."""
    return not number_format.is_plain


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
    columns = weight.number_format.code_shape(weight.matrix)[-1]
    return pairs.reshape(*code.shape[:-1], -1)[..., :columns]


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The dense weight."""
    arrays = {**weight.arrays, "code": _codes(weight.arrays["code"], weight)}
    return formats.dequantize(weight.number_format, arrays, dtype)


def take(
    weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any
) -> Shaped[Array, "ids columns"]:
    """Rows of the weight; of one that decodes only as a whole the others are decoded too."""
    if not weight.number_format.is_elementwise:
        return decode(weight, dtype)[ids]
    return _numbers(weight, weight.arrays["code"][ids], ids, dtype)


def _numbers(
    weight: ResidentTensor, code: Array, rows: Int[Array, " rows"], dtype: Any
) -> Shaped[Array, "rows columns"]:
    """Numbers of some rows, whose codes are given, of a matrix where it lies."""
    number_format, arrays = weight.number_format, {"code": _codes(code, weight)}
    if formats.GROUP_INDEX in weight.arrays:
        arrays[formats.GROUP_INDEX] = weight.array(formats.GROUP_INDEX)
    for parameter in weight.number_format.parameters:
        high, columns = parameter.blocks(2)
        array = weight.arrays[parameter.name]
        # A row for each id: blocks of one row, however many shared an entry before.
        row = jnp.zeros_like(rows) if high == formats.WHOLE else rows // high
        if weight.index is not None:
            row += weight.index * array.shape[-2]
        arrays[parameter.name] = array.reshape(-1, array.shape[-1])[row]
        number_format = number_format.with_parameter(parameter.name, block=(1, columns))
    return formats.dequantize(number_format, arrays, dtype)


def blocks(weight: ResidentTensor) -> tuple[int, row_blocks.Block]:
    """Blocks as they lie, in a stack too; a single one of what decodes only as a whole."""
    if not weight.number_format.is_elementwise:
        return 1, lambda at: decode(weight.alone(), jnp.float32)
    code = weight.arrays["code"]
    count = row_blocks.count(code.shape[-2], weight.matrix[1])
    high, flat = code.shape[-2] // count, code.reshape(-1, code.shape[-1])
    first = 0 if weight.index is None else weight.index * code.shape[-2]

    def block(at: Array) -> Array:
        start = first + at * high
        own = jax.lax.dynamic_slice_in_dim(flat, start, high, allow_negative_indices=False)
        rows = at * high + jnp.arange(high, dtype=jnp.int32)
        return _numbers(weight, own, rows, jnp.float32)

    return count, block


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
    blocks=blocks,
)
