"""NVFP4 for TPU: codes of E2M1 in words, and their scales as they are.

The rows of the packed matrix are summed over. They are padded to tiles of 512, which are two chunks
of 16 blocks of 16, columns to multiples of 128.

    words:  uint32[rows / 8, columns]   codes as `nibbles` says; those that are not plain are bytes
                                        of float8_e5m2 that are 2^-14 of their numbers, 0.5 and 0
                                        among its subnormal ones
    scale:  uint8[rows / 16, columns]   codes of E4M3 without NaN and sign; one that serves more
                                        rows is there for every 16
    factor: float32[1, columns]   what a column's scales are multiplied by, or divided
    options: divides, native (whether words are plain)

Row 16 j + b of a chunk, as words have it, is row 16 b + j: rows of a register of 16 are of all
blocks, and a register of scales serves 16 of them. Every code survives; scales and factors survive
as numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Shaped, UInt8

from jentropy import formats
from jentropy.formats import FP8_E4M3, WHOLE, Format, Parameter, Role
from jentropy.formats.dequantizing import divide, spread
from jentropy.formats.encoding import bits_of
from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed, padded, sized
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES, ceil_to
from jentropy.pallas_kernels.tpu import nibbles

BLOCK, CHUNK, TILE = 16, 256, 512
BLOCKS = CHUNK // BLOCK
MOST = 0x7E  # E4M3 code of its largest number
UNIT = 2.0**14  # of which words that are not plain have the part
FACTORS = ("FP32", "BF16", "FP16")


def holds(number_format: Format) -> bool:
    """E2M1 with an E4M3 scale, and scales of that, if there are any."""
    roots = [p for p in number_format.parameters if p.of is None]
    return (
        number_format.element.name == "FP4_E2M1"
        and [(p.role, p.element.name) for p in roots] == [(Role.SCALE, "FP8_E4M3")]
        and all(p.of == roots[0].name for p in number_format.parameters if p.of is not None)
        and all(p.role in (Role.SCALE, Role.DIVISOR) for p in number_format.parameters)
        and all(p.element.name in FACTORS for p in number_format.parameters if p.of)
        and len(number_format.parameters) <= 2
    )


def _parameters(weight: Matrices) -> tuple[Parameter, Parameter | None]:
    """The scale, and its own."""
    (scale,) = (p for p in weight.number_format.parameters if p.of is None)
    return scale, next((p for p in weight.number_format.parameters if p.of), None)


def _fits(weight: Matrices) -> bool:
    scale, factor = _parameters(weight)
    return (
        scale.blocks(2)[0] % BLOCK == 0 < scale.blocks(2)[0]
        and scale.blocks(2)[1] == 1
        and (factor is None or factor.blocks(2)[0] == WHOLE)
        and formats.GROUP_INDEX not in weight.codes
    )


def shapes(weight: Matrices) -> Packed | None:
    """Arrays without data, and options."""
    if not _fits(weight):
        return None
    (rows, columns), stack, (_, factor) = weight.matrix, weight.stack, _parameters(weight)
    high, wide = ceil_to(rows, TILE), ceil_to(columns, LANES)
    return {
        "words": sized(jnp.uint32, *stack, high // 8, wide),
        "scale": sized(jnp.uint8, *stack, high // BLOCK, wide),
        "factor": sized(jnp.float32, *stack, 1, wide),
    }, {
        "divides": int(factor is not None and factor.role is Role.DIVISOR),
        "native": int(targets.current_tpu().native_e2m1),
    }


def pack(weight: Matrices) -> Packed | None:
    """Lays out codes, summed over their rows; None where a scale is negative or NaN."""
    if not _fits(weight):
        return None
    scale, factor = _parameters(weight)
    codes = jnp.repeat(weight.codes[scale.name], scale.blocks(2)[0] // BLOCK, axis=-2)
    codes = codes[..., : -(-weight.matrix[0] // BLOCK), :]
    if bool((codes > MOST).any()):
        return None
    planned = shapes(weight)
    assert planned is not None
    columns = weight.matrix[1]
    factors = jnp.ones((1, 1), jnp.float32)
    if factor is not None:
        numbers = factor.element.decode(weight.codes[factor.name]).astype(jnp.float32)
        factors = spread(numbers, factor, weight.codes["code"].shape, None, None)
        factors = factors[..., :1, :]
    factors = jnp.broadcast_to(factors, (*weight.stack, 1, columns)).reshape(-1, 1, columns)
    arrays = {
        "words": jnp.stack([_words(one, planned[1]["native"]) for one in weight.each]),
        "scale": jnp.stack([padded(one, TILE // BLOCK, LANES) for one in _each(codes)]),
        "factor": jnp.pad(factors, ((0, 0), (0, 0), (0, -columns % LANES)), constant_values=1),
    }
    return weight.filled(planned, arrays)


def _each(codes: Shaped[Array, "*stack blocks columns"]) -> Shaped[Array, "n blocks columns"]:
    return codes.reshape(-1, *codes.shape[-2:])


@partial(jax.jit, static_argnames="native")
def _words(codes: UInt8[Array, "rows columns"], native: int) -> Array:
    ordered = swapped(padded(codes, TILE, LANES))
    return nibbles.pack_plain(ordered) if native else nibbles.pack(ordered)


def swapped(rows: Shaped[Array, "rows columns"]) -> Shaped[Array, "rows columns"]:
    """Rows in the order of words, and back."""
    chunks = rows.reshape(-1, BLOCKS, BLOCK, rows.shape[-1])
    return chunks.swapaxes(1, 2).reshape(rows.shape)


def swapped_columns(x: Shaped[Array, "M K"]) -> Shaped[Array, "M K"]:
    """Columns of a left operand in the order of words."""
    return x.reshape(x.shape[0], -1, BLOCKS, BLOCK).swapaxes(2, 3).reshape(x.shape)


def take(weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any) -> Shaped[Array, "ids rows"]:
    """Columns of the packed matrix, in plain JAX."""
    arrays = weight.arrays
    unpack = nibbles.unpack_plain if weight.option("native") else nibbles.unpack
    codes = {
        "code": swapped(unpack(arrays["words"][:, ids])),
        "scale": bits_of(scales(arrays["scale"][:, ids], arrays["factor"][:, ids], weight)),
    }
    scale = Parameter(name="scale", field="scale", element=formats.FP32, block=(BLOCK, 1))
    number_format = Format(name="NVFP4", element=weight.number_format.element, parameters=(scale,))
    return formats.dequantize(number_format, codes, dtype).T


def scales(
    codes: UInt8[Array, "blocks columns"], factor: Float32[Array, "1 columns"], w: ResidentTensor
) -> Float32[Array, "blocks columns"]:
    """Scales with their factors, as `formats.dequantize` has them."""
    numbers = FP8_E4M3.decode(codes)
    return divide(numbers, factor) if w.option("divides") else numbers * factor


def unit(weight: ResidentTensor) -> float:
    """Of which a code is read as the part."""
    return 1.0 if weight.option("native") else UNIT


def extent(weight: ResidentTensor) -> Extent:
    """Rows and columns, padded to tiles."""
    words = weight.arrays["words"]
    return (8 * words.shape[-2], words.shape[-1]), (TILE, LANES)


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded, in plain JAX: what kernels are held to."""
    return take(weight, jnp.arange(weight.arrays["words"].shape[-1]), dtype).T


LAYOUT = Layout(
    name="tpu_nvfp4",
    backend="tpu",
    reduces=-2,
    stacked=("words", 2),
    columns={"words": -1, "scale": -1, "factor": -1},
    rows={"words": -2, "scale": -2},
    holds=holds,
    shapes=shapes,
    pack=pack,
    extent=extent,
    decode=decode,
    take=take,
    has_kernels=True,
)
