"""Resident weights of the TPU layouts without data: shapes, dtypes and options only.

They are what `to_resident` makes of a weight [N, K] with Gaussian numbers, at no cost, however
large: `ResidentTensor` whose leaves are `jax.ShapeDtypeStruct`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy import formats
from jentropy.formats import WHOLE, Format, Role
from jentropy.pallas_kernels.layouts import tpu_scaled, tpu_window12
from jentropy.pallas_kernels.layouts.tiles import LANES, ceil_to, choose_tile
from jentropy.pallas_kernels.resident import ResidentTensor

ESCAPE_RATE = 1.6e-4 * 1.3  # of Gaussian weights, and room for those that are less so
TENSOR = None  # a block of all weights


def _scales(number_format: Format, block: tuple[int, ...] | None) -> Format:
    """The same format with other blocks."""
    for parameter in number_format.parameters:
        number_format = number_format.with_parameter(parameter.name, block=block)
    return number_format


FORMATS: dict[str, Format] = {
    "BF16": formats.FORMATS["BF16"],
    "FP8 tensor": _scales(formats.FP8_ROW, TENSOR),
    "FP8 row": formats.FP8_ROW,
    "FP8 128x128": formats.FP8_BLOCK,
    "MXFP8": formats.MXFP8,
    "INT8 row": formats.INT8_ROW,
    "INT4 row": _scales(formats.INT4_GROUP, (1, WHOLE)),
    "INT4 g32": _scales(formats.INT4_GROUP, (32,)),
    "INT4 g128": formats.INT4_GROUP,
    "INT4 row zeros": _scales(formats.ASYMMETRIC_INT4, (1, WHOLE)),
    "INT4 g32 zeros": _scales(formats.ASYMMETRIC_INT4, (32,)),
    "INT4 g128 zeros": _scales(formats.ASYMMETRIC_INT4, (128,)),
}


def abstract_weight(number_format: Format, k: int, n: int) -> ResidentTensor:
    """A weight [n, k] in the TPU's layout, for products that sum over k.

    Example:
      >>> w = abstract_weight(FORMATS["INT4 g128"], 4096, 14336)
      >>> w.shape, round(w.bits_per_weight, 3)
      ((14336, 4096), 4.125)
    """
    parameters = tuple(
        dataclasses.replace(parameter, block=parameter.blocks(2))
        for parameter in number_format.parameters
    )
    number_format = dataclasses.replace(number_format, parameters=parameters)
    layout = tpu_scaled if parameters else tpu_window12
    arrays, options = _scaled(number_format, k, n) if parameters else _window12(k, n)
    return ResidentTensor(
        arrays=arrays,
        options=tuple(sorted(options.items())),
        layout=layout.NAME,
        number_format=number_format,
        logical=(n, k),
        turned=True,
    )


Made = tuple[dict[str, jax.Array], dict[str, int]]


def _array(dtype: Any, *shape: int) -> jax.Array:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))  # type: ignore[return-value]


def _window12(rows: int, columns: int) -> Made:
    tile_rows = choose_tile(rows, tpu_window12.TILE_ROWS)
    tile_columns = tpu_window12.TILE_COLUMNS
    wide, high = ceil_to(columns, LANES), ceil_to(rows, tile_rows)
    chunks = chunks_of(tile_rows * min(tile_columns, wide))
    grid = -(-columns // tile_columns), high // tile_rows
    arrays = {
        "words": _array(jnp.uint32, 3, high // 8, wide),
        "top": _array(jnp.uint8, 1, wide),
        "counts": _array(jnp.int32, *grid),
        "escapes": _array(jnp.int32, *grid, -(-chunks // 4) * 8, tpu_window12.CHUNK),
    }
    options = {
        "tile_rows": tile_rows,
        "tile_columns": tile_columns,
        "shift": 52,
        "inline": chunks,
    }
    return arrays, options


def chunks_of(weights: int) -> int:
    """Chunks of escapes that a tile of so many weights has."""
    return -(-int(np.ceil(weights * ESCAPE_RATE)) // tpu_window12.CHUNK)


def _scaled(number_format: Format, rows: int, columns: int) -> Made:
    element, scale = number_format.element, number_format.parameter("scale")
    group, block = (
        0 if b == WHOLE or b >= size else b
        for b, size in zip(scale.blocks(2)[::-1], (rows, columns), strict=True)
    )
    halves = 8 // element.code_bits
    tile_rows = choose_tile(
        rows, [t for t in tpu_scaled.TILE_ROWS if not group or t // halves % group == 0]
    )
    wide, high = ceil_to(columns, LANES), ceil_to(rows, tile_rows)
    grid = (high // tile_rows, tile_rows // group) if group else (1, 1)
    shared = block if group and block % LANES == 0 else 0
    powers = scale.element is formats.FP8_E8M0
    numbers = jnp.bfloat16 if scale.element is formats.BF16 else jnp.float32
    entries = -(-columns // shared) if shared else wide
    arrays = {
        "words": _array(jnp.uint32, high // tpu_scaled.per_word(element), wide),
        "scale": _array(jnp.uint8 if powers else numbers, *grid, entries),
    }
    if any(p.role is Role.ZERO_POINT for p in number_format.parameters):
        arrays["zero"] = _array(jnp.bfloat16, *grid, wide)
    options = {
        "tile_rows": tile_rows,
        "group": group,
        "block": shared,
        "shift": 0,
        "exact": 0,
        "narrow": int(powers or scale.element is formats.BF16),
    }
    return arrays, options
