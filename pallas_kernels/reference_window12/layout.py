"""Reference layout of BF16: window12 in planes of bytes and nibbles, which a CPU decodes fast.

Rows lie in blocks, see `row_blocks`; a block of an odd number of rows has one more, of zeros. The
upper half of a block's rows has its ranks (c of `codecs.window12`) in the low nibbles of `ranks`,
the lower half in the high ones, so that loops over columns are alike everywhere. Leading axes of a
stack come before every array's own.

    signs:          uint8[blocks, 2, half, columns]   sign, mantissa
    ranks:          uint8[blocks, half, columns]
    top:            uint16[]                  top of the window
    escape_starts:  int32[rows + 1]           escapes of row r are starts[r] .. starts[r + 1] - 1
    escape_places:  int32[escapes]            in the block, row * columns + column; padded to the
                                              same size for most weights of a shape
    escape_codes:   uint16[escapes]
    option `row_escapes`: at least the largest number of escapes of any row, a power of two
    option `factors`: 2 if powers of two are needed that float32 has not, else 1

Every code survives.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped, UInt8, UInt16

from jentropy.codecs import buffers, threads, window12
from jentropy.pallas_kernels import bf16, row_blocks
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed, sized
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import ceil_to

LEAST_ESCAPES, SHARE = 8, 1 << 11  # of lists and rows; weights for each escape
SIGN, MANTISSA, RANK, NIBBLE = 0x80, 7, 0xF, 4
EXPONENT, MAGNITUDE = 0xFF, 0x7FFF  # of a code, shifted and not
FLOAT_MANTISSA, HALF, SIGN_AND_MANTISSA = 23, 16, 0x807F0000  # of float32


def shapes(
    weight: Matrices, escapes: int = 1, row_escapes: int | None = None, factors: int = 1
) -> Packed:
    """Arrays without data, and options, rounded up so that tensors alike share a program.

    Args:
      escapes: of the matrix that has most.
      row_escapes: of the row that has most; None: as of Gaussian weights.
      factors: the option.
    """
    (rows, columns), stack = weight.matrix, weight.stack
    room = ceil_to(escapes, max(LEAST_ESCAPES, rows * columns // SHARE))
    most = 3 * bf16.escapes_of(columns) if row_escapes is None else row_escapes
    blocks = row_blocks.count(rows, columns)
    half = -(-rows // blocks // 2)
    arrays = {
        "signs": sized(jnp.uint8, *stack, blocks, 2, half, columns),
        "ranks": sized(jnp.uint8, *stack, blocks, half, columns),
        "top": sized(jnp.uint16, *stack),
        "escape_starts": sized(jnp.int32, *stack, rows + 1),
        "escape_places": sized(jnp.int32, *stack, room),
        "escape_codes": sized(jnp.uint16, *stack, room),
    }
    least = max(LEAST_ESCAPES, 1 << (most - 1).bit_length()) if most else 0
    return arrays, {"row_escapes": least, "factors": factors}


def pack(weight: Matrices) -> Packed:
    """Lays out BF16 codes, on the host: what JAX does with a new shape is compiled."""
    rows, columns = weight.matrix
    each = np.asarray(weight.codes["code"]).reshape(-1, rows, columns)
    blocks = row_blocks.count(rows, columns)
    half, high = -(-rows // blocks // 2), rows // blocks
    signs = buffers.empty((len(each), blocks, 2, half, columns), np.uint8)
    ranks = buffers.empty((len(each), blocks, half, columns), np.uint8)
    tops, listed = [], []
    for codes, *planes in zip(each, signs, ranks, strict=True):
        tops.append(int(window12.choose_top(bf16.exponents(codes))))
        by_block = codes.reshape(blocks, high, columns)
        escapes = threads.each(partial(_pack_block, tops[-1]), by_block, *planes)
        place = np.concatenate(escapes)
        block = np.repeat(np.arange(blocks), [one.size for one in escapes])
        row, column = np.divmod(place, columns)
        row += block * high
        listed.append((np.bincount(row, minlength=rows), place, codes[row, column]))
    planned = shapes(
        weight,
        max(place.size for _, place, _ in listed),
        max(int(per_row.max(initial=0)) for per_row, _, _ in listed),
        factors=1 if max(tops) <= bf16.BIAS + window12.WINDOW else 2,
    )
    room = planned[0]["escape_codes"].shape[-1]
    starts, places, filled_codes = zip(
        *(
            (
                np.append(0, np.cumsum(per_row)),
                np.pad(place, (0, room - place.size)),
                np.pad(code, (0, room - code.size)),
            )
            for per_row, place, code in listed
        ),
        strict=True,
    )
    arrays = {
        "signs": signs,
        "ranks": ranks,
        "top": np.array(tops, np.uint16),
        "escape_starts": np.stack(starts).astype(np.int32),
        "escape_places": np.stack(places).astype(np.int32),
        "escape_codes": np.stack(filled_codes),
    }
    return weight.filled(planned, arrays)


def _pack_block(
    top: int,
    codes: UInt16[np.ndarray, "rows columns"],
    signs: UInt8[np.ndarray, "2 half columns"],
    ranks: UInt8[np.ndarray, "half columns"],
) -> Int[np.ndarray, " escapes"]:
    """Fills the planes of a block; where its escapes are, row * columns + column."""
    high, half = len(codes), len(ranks)
    rank = codes >> MANTISSA
    rank &= EXPONENT
    rank -= np.uint16(top - window12.WINDOW)  # of exponents below the window, it wraps
    outside = rank - np.uint16(1) >= np.uint16(window12.WINDOW)
    rank[outside] = 0
    rank = rank.astype(np.uint8)
    ranks[:] = rank[:half]
    ranks[: high - half] |= rank[half:] << NIBBLE
    flat = signs.reshape(-1, codes.shape[1])
    np.bitwise_or(codes >> 8 & SIGN, codes & (SIGN - 1), out=flat[:high], casting="unsafe")
    flat[high:] = 0
    places = np.flatnonzero(outside)
    escapes = places[codes.reshape(-1)[places] & MAGNITUDE != 0]
    flat.reshape(-1)[escapes] = 0
    return escapes


def _slots(signs: Array, ranks: Array, top: Array) -> UInt16[Array, "*shape"]:
    """Codes of bytes of signs and mantissas, and their ranks; 0 of escapes."""
    signs = signs.astype(jnp.uint16)
    slots = (signs & SIGN) << 8 | signs & (SIGN - 1) | ranks.astype(jnp.uint16) << MANTISSA
    return window12.from_slots(slots, top)


def extent(weight: ResidentTensor) -> Extent:
    """Rows and columns."""
    return weight.logical, (1, 1)


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The dense weight. Pure JAX: call it inside jit or out."""
    arrays, (rows, columns) = weight.arrays, weight.matrix
    high = rows // arrays["ranks"].shape[0]  # rows of a block
    shifts = jnp.array([0, NIBBLE], jnp.uint8)[:, None, None]
    ranks = arrays["ranks"][:, None] >> shifts & np.uint8(RANK)
    codes = _slots(arrays["signs"], ranks, arrays["top"]).reshape(-1, 2 * ranks.shape[2], columns)
    codes = codes[:, :high].reshape(rows, columns)
    places = arrays["escape_places"]
    number = jnp.arange(places.shape[0], dtype=jnp.int32)
    row = jnp.searchsorted(arrays["escape_starts"], number, side="right") - 1
    at = row, places - row % high * columns
    return bf16.numbers(codes.at[at].set(arrays["escape_codes"], mode="drop"), dtype)


def take(
    weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any
) -> Shaped[Array, "ids columns"]:
    """Rows of the weight."""
    arrays, (rows, columns) = weight.arrays, weight.matrix
    blocks, half = arrays["ranks"].shape[:2]
    block, row = jnp.divmod(ids, rows // blocks)
    lower, within = jnp.divmod(row, half)
    ranks = arrays["ranks"][block, within]
    ranks = jnp.where(lower[:, None] == 0, ranks & np.uint8(RANK), ranks >> NIBBLE)
    codes = _slots(arrays["signs"][block, lower, within], ranks, arrays["top"])
    if limit := weight.option("row_escapes"):
        index = arrays["escape_starts"][ids][:, None] + jnp.arange(limit)
        valid = index < arrays["escape_starts"][ids + 1][:, None]
        index = jnp.minimum(index, arrays["escape_places"].shape[0] - 1)
        column = arrays["escape_places"][index] - (row * columns)[:, None]
        at = jnp.arange(ids.shape[0])[:, None], jnp.where(valid, column, columns)
        codes = codes.at[at].set(arrays["escape_codes"][index], mode="drop")
    return bf16.numbers(codes, dtype)


def blocks(weight: ResidentTensor) -> tuple[int, row_blocks.Block]:
    """Blocks as they lie, in a stack too.

    A rank and a mantissa are a float32 a power of two short, a zero is one: both are multiplied by
    it, which rounds nothing. Escapes are written over the products.
    """
    rows, columns = weight.matrix
    count, half = weight.arrays["ranks"].shape[-3:-1]
    high, first = rows // count, 0 if weight.index is None else weight.index * count
    signs = weight.arrays["signs"].reshape(-1, 2, half, columns)
    ranks = weight.arrays["ranks"].reshape(-1, half, columns)
    starts = weight.array("escape_starts")
    lists = [weight.arrays[name] for name in ("escape_places", "escape_codes")]
    before = jnp.int32(0) if weight.index is None else weight.index * lists[0].shape[-1]
    places, codes = (array.reshape(-1) for array in lists)
    power = weight.array("top").astype(jnp.int32) - window12.WINDOW
    # Exponents of float32, none of them above its own largest.
    powers = [power] if weight.option("factors") == 1 else [power >> 1, power - (power >> 1)]
    shifts = jnp.array([FLOAT_MANTISSA, FLOAT_MANTISSA - NIBBLE], jnp.uint32)[:, None, None]

    def block(at: Array) -> Array:
        own, pairs = (
            jax.lax.dynamic_index_in_dim(
                array, first + at, keepdims=False, allow_negative_indices=False
            )
            for array in (signs, ranks)
        )
        # Shifted as a signed number, a sign fills all bits above the mantissa.
        own = jax.lax.bitcast_convert_type(own, jnp.int8).astype(jnp.int32) << HALF
        own = jax.lax.bitcast_convert_type(own, jnp.uint32) & np.uint32(SIGN_AND_MANTISSA)
        exponents = pairs.astype(jnp.uint32)[None] << shifts & np.uint32(RANK << FLOAT_MANTISSA)
        numbers = jax.lax.bitcast_convert_type(own | exponents, jnp.float32)
        for one in powers:
            numbers *= jax.lax.bitcast_convert_type(one + bf16.BIAS << FLOAT_MANTISSA, jnp.float32)

        def patch(escape: Array, numbers: Array) -> Array:
            code = _one(codes, escape).astype(jnp.uint32) << HALF
            number = jax.lax.bitcast_convert_type(code, jnp.float32)
            place = (_one(places, escape),)
            return jax.lax.dynamic_update_slice(
                numbers, number[None], place, allow_negative_indices=False
            )

        begin, end = (before + _one(starts, high * n) for n in (at, at + 1))
        numbers = jax.lax.optimization_barrier(numbers.reshape(-1))
        if places.size:
            numbers = jax.lax.fori_loop(begin, end, patch, numbers)
        return numbers.reshape(-1, columns)[:high]

    return count, block


def _one(array: Array, index: Array) -> Array:
    """array[index], not from the end: to trace and to compile takes half as long."""
    one = jax.lax.dynamic_slice(array, (index,), (1,), allow_negative_indices=False)
    return jax.lax.squeeze(one, (0,))


LAYOUT = Layout(
    name="reference_window12",
    backend="reference",
    stacked=("signs", 4),
    lists={"escape_places": (-1, (0,)), "escape_codes": (-1, (0,))},
    largest=("row_escapes", "factors"),
    holds=bf16.holds,
    shapes=shapes,
    pack=pack,
    extent=extent,
    decode=decode,
    take=take,
    blocks=blocks,
)
