"""Scales and zero points as the Hopper layout of scaled codes has them, see `layout`.

Each function gives arrays, or None where these numbers cannot be stored exactly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8, UInt32

from jentropy.formats import WHOLE, ElementFormat, Parameter
from jentropy.formats.dequantizing import spread
from jentropy.formats.encoding import bits_of
from jentropy.pallas_kernels.hopper import fragments
from jentropy.pallas_kernels.integers import offset_of
from jentropy.pallas_kernels.matrices import Matrices
from jentropy.pallas_kernels.tiles import ceil_to

from .blocks import TILE, Blocks, Kind
from .elements import ELEMENTS

E8M0_NAN, BIAS, LARGEST = 255, 127, 254  # codes of E8M0; the largest exponent of BF16
SIXTEENTHS_POWER = 20  # by which products with E4M3 scales are too small
SIXTEENTHS_PLACE, EXACT_PLACE = 0x7000, 0x3B00  # of such a scale in BF16: as multiplied, as it is
FIRST_SIXTEENTH = 9  # 2^-9 is the least E4M3


def _scales(weight: Matrices, scale: Parameter) -> Float[Array, "stack rows groups"]:
    """A scale times the scales of its own, float32, on its own grid."""
    numbers = scale.element.decode(weight.codes[scale.name])
    for factor in (p for p in weight.number_format.parameters if p.of == scale.name):
        numbers = numbers * _factors(weight, factor, scale)
    return numbers.reshape(-1, *numbers.shape[-2:])


def _factors(weight: Matrices, factor: Parameter, scale: Parameter) -> Array:
    values = factor.element.decode(weight.codes[factor.name])
    return spread(values, factor, weight.codes["code"].shape, scale, None)


def _spread(numbers: Array, block: tuple[int, int], group: int, weight: Matrices) -> Array:
    """Entries of a grid for every row, and every group of columns; padded."""
    (high, wide), (rows, columns) = block, weight.matrix
    entries = -(-columns // group) if group else 1
    if high == WHOLE or numbers.shape[-2] == 1:
        numbers = jnp.broadcast_to(numbers, (*numbers.shape[:-2], rows, numbers.shape[-1]))
    elif high > 1:
        numbers = jnp.repeat(numbers, high, axis=-2)[..., :rows, :]
    if group and wide > group:
        numbers = jnp.repeat(numbers, wide // group, axis=-1)[..., :entries]
    missing = -rows % TILE, (ceil_to(columns, TILE) // group - entries) if group else 0
    stacked = numbers.reshape(-1, *numbers.shape[-2:])
    stacked = jnp.broadcast_to(stacked, (weight.each.shape[0], *stacked.shape[1:]))
    return jnp.pad(stacked, ((0, 0), *((0, n) for n in missing)))


def _by_blocks(entries: Array) -> Array:
    """Entries [stack, rows, groups] as [stack, row blocks, groups, 64]."""
    stack, rows, groups = entries.shape
    return entries.reshape(stack, rows // fragments.ROWS, fragments.ROWS, groups).swapaxes(2, 3)


def _in_words(entries: UInt8[Array, "stack rows groups"]) -> UInt32[Array, "stack blocks words 64"]:
    """Four neighbours to a word, the first in the low byte."""
    four = entries.reshape(*entries.shape[:2], -1, 4).astype(jnp.uint32)
    return _by_blocks(sum((four[..., i] << 8 * i for i in range(1, 4)), four[..., 0]))


def numbers(weight: Matrices, blocks: Blocks) -> dict[str, Array] | None:
    scale = blocks.scale
    if scale is None:
        ones = jnp.ones((*weight.stack, 1, 1), jnp.float32)
        return {"row": _spread(ones, (WHOLE, WHOLE), 0, weight)[..., 0]}
    numbers = _scales(weight, scale)
    most = jnp.finfo(jnp.float32).max * 2.0**-8  # room for an element's unit
    if not bool((jnp.abs(numbers) < most).all()):
        return None
    spread_out = _spread(numbers, scale.blocks(2), blocks.group, weight)
    if blocks.kind is Kind.ROW:
        return {"row": spread_out[..., 0]}
    shape, dtype = blocks.scale_of(*spread_out.shape[1:], weight.number_format)
    by_blocks = _by_blocks(spread_out)
    if blocks.shared:
        by_blocks = by_blocks[..., : shape[-1]]
    return {"scale": by_blocks.astype(dtype)}


def powers(weight: Matrices, blocks: Blocks) -> dict[str, Array] | None:
    """E8M0 as exponents of BF16, and what rows lack where the largest would be above them."""
    assert blocks.scale is not None
    element = ELEMENTS[weight.number_format.element.name]
    code = weight.codes[blocks.scale.name]
    if bool((code == E8M0_NAN).any()):
        return None
    entries = _spread(code, blocks.scale.blocks(2), blocks.group, weight)
    used = _any_in_groups(weight.each, blocks.group, weight.number_format.element)
    exponent = entries.astype(jnp.int32)
    top = jnp.where(used, exponent, 0).max(-1, keepdims=True)
    shift = jnp.maximum(0, top + element.power - LARGEST)
    # From here on products with the least numbers are no subnormal ones.
    least = element.tiny + 1 + shift
    if bool((used & (exponent < least)).any()):
        return None
    field = jnp.clip(exponent, least, jnp.maximum(top, least)) + element.power - shift
    row = jax.lax.bitcast_convert_type((shift[..., 0] + BIAS).astype(jnp.uint32) << 23, jnp.float32)
    return {"row": row, "scale": _in_words(field.astype(jnp.uint8))}


def sixteenths(weight: Matrices, blocks: Blocks) -> dict[str, Array] | None:
    """E4M3 scales as numbers without subnormal ones, and the others' product for each row."""
    scale = blocks.scale
    assert scale is not None
    row = jnp.ones((*weight.stack, 1, 1), jnp.float32)
    for factor in (p for p in weight.number_format.parameters if p.of == scale.name):
        row = row * factor.element.decode(weight.codes[factor.name])
    rows = [p.blocks(2)[0] for p in weight.number_format.parameters if p.of == scale.name]
    row = _spread(row, (max(rows, default=WHOLE), WHOLE), 0, weight)[..., 0]
    scaled = row * np.float32(2.0**SIXTEENTHS_POWER)
    code = weight.codes[scale.name]
    number = scale.element.decode(code)
    tiny = jnp.abs(row) < np.float32(2.0**-100)
    signed = jnp.isnan(number) | (bits_of(number) >> 31 == 1)
    if bool((~jnp.isfinite(scaled)).any() | (tiny & (row != 0)).any() | signed.any()):
        return None
    bits = bits_of(jnp.maximum(number, np.float32(2.0**-FIRST_SIXTEENTH)))
    short = (bits >> 20) - ((BIAS - FIRST_SIXTEENTH) << 3)  # exponent, three bits of mantissa
    entries = _spread(short.astype(jnp.uint8), scale.blocks(2), blocks.group, weight)
    held = {"row": scaled, "scale": _in_words(entries)}
    if bool((number == 0).any()):  # there are no scales of zero: codes are
        of_weights = _spread(number, scale.blocks(2), blocks.group, weight)
        rows_, columns = weight.matrix
        zero = jnp.repeat(of_weights == 0, blocks.group, axis=-1)[:, :rows_, :columns]
        sign = np.uint8(1 << weight.number_format.element.code_bits - 1)
        held["codes"] = jnp.where(zero, weight.each & sign, weight.each)
    return held


def _any_in_groups(codes: Array, group: int, element: ElementFormat) -> Array:
    """Groups that have other numbers than zero, padded."""
    magnitude = (codes & np.uint8((1 << element.code_bits - 1) - 1)) != 0
    rows, columns = codes.shape[1:]
    magnitude = jnp.pad(magnitude, ((0, 0), (0, -rows % TILE), (0, -columns % TILE)))
    return magnitude.reshape(*magnitude.shape[:2], -1, group).any(-1)


def zeros(weight: Matrices, blocks: Blocks) -> Array | None:
    assert blocks.zero is not None
    element = ELEMENTS[weight.number_format.element.name]
    numbers = blocks.zero.element.decode(weight.codes[blocks.zero.name])
    above = numbers + np.float32(offset_of(weight.number_format.element))
    least, most = (0, 127) if element.unit else (-128, 128)
    if not bool(((above >= least) & (above <= most)).all()):
        return None
    entries = _spread(above, blocks.zero.blocks(2), blocks.group, weight)
    if blocks.kind is Kind.ROW:
        return (entries[..., 0] * np.float32(-(2.0**-element.unit))).astype(jnp.bfloat16)
    return _by_blocks(entries).astype(jnp.uint8)
