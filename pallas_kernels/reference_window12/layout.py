"""Reference layout of BF16: window12, rows one after the other, in plain JAX.

A row is padded with zeros to a multiple of eight columns, so that it can be read alone. Leading
axes of a stack come before every array's own.

    words:          uint32[rows, groups, 3]   eight weights to three words, `codecs.window12`
    top:            uint16[]                  top of the window
    escape_starts:  int32[rows + 1]           escapes of row r are starts[r] .. starts[r + 1] - 1
    escape_columns: int32[escapes]            padded to the same size for most weights of a shape
    escape_codes:   uint16[escapes]
    option `row_escapes`: at least the largest number of escapes of any row, a power of two

Every code survives.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt16, UInt32

from jentropy import modes
from jentropy.codecs import window12
from jentropy.entropy import histogram
from jentropy.pallas_kernels import bf16
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed, sized
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import ceil_to

LEAST_ESCAPES, SHARE = 8, 1 << 11  # of lists and rows; weights for each escape


def shapes(weight: Matrices, escapes: int = 1, row_escapes: int | None = None) -> Packed:
    """Arrays without data, and options, rounded up so that tensors alike share a program.

    Args:
      escapes: of the matrix that has most.
      row_escapes: of the row that has most; None: as of Gaussian weights.
    """
    (rows, columns), stack = weight.matrix, weight.stack
    room = ceil_to(escapes, max(LEAST_ESCAPES, rows * columns // SHARE))
    most = 3 * bf16.escapes_of(columns) if row_escapes is None else row_escapes
    arrays = {
        "words": sized(jnp.uint32, *stack, rows, -(-columns // window12.GROUP), window12.WORDS),
        "top": sized(jnp.uint16, *stack),
        "escape_starts": sized(jnp.int32, *stack, rows + 1),
        "escape_columns": sized(jnp.int32, *stack, room),
        "escape_codes": sized(jnp.uint16, *stack, room),
    }
    least = max(LEAST_ESCAPES, 1 << (most - 1).bit_length()) if most else 0
    return arrays, {"row_escapes": least}


def pack(weight: Matrices) -> Packed:
    """Lays out BF16 codes."""
    codes, (rows, columns) = weight.codes["code"], weight.matrix
    alone = not weight.stack and modes.explicit_mesh(codes) is None  # is taken as it lies
    words, tops, listed = [], [], []
    for matrix in [codes] if alone else weight.each:
        host = np.asarray(matrix)
        counts = histogram.count(host, bits=16).reshape(2, 256, 128).sum(axis=(0, 2))
        tops.append(window12.choose_top(counts))
        packed, escapes = _pack_words(matrix, np.uint16(tops[-1]))
        words.append(packed)
        row, column = np.nonzero(np.asarray(escapes))
        listed.append((np.bincount(row, minlength=rows), column, host[row, column]))
    planned = shapes(
        weight,
        max(column.size for _, column, _ in listed),
        max(int(per_row.max(initial=0)) for per_row, _, _ in listed),
    )
    room = planned[0]["escape_codes"].shape[-1]
    # On the host: what JAX does with a new shape is compiled, `jnp.asarray` even.
    starts, filled_columns, filled_codes = zip(
        *(
            (
                np.append(0, np.cumsum(per_row)),
                np.pad(column, (0, room - column.size), constant_values=columns),
                np.pad(code, (0, room - code.size)),
            )
            for per_row, column, code in listed
        ),
        strict=True,
    )
    arrays = {
        "words": words[0] if alone else jnp.stack(words),
        "top": np.array(tops, np.uint16),
        "escape_starts": np.stack(starts).astype(np.int32),
        "escape_columns": np.stack(filled_columns).astype(np.int32),
        "escape_codes": np.stack(filled_codes),
    }
    return weight.filled(planned, arrays)


@jax.jit
def _pack_words(
    codes: UInt16[Array, "rows columns"], top: UInt16[Any, ""]
) -> tuple[UInt32[Array, "rows groups 3"], Bool[Array, "rows columns"]]:
    rows, columns = codes.shape
    slots = window12.to_slots(codes, top).astype(jnp.uint32)
    slots = jnp.pad(slots, ((0, 0), (0, -columns % window12.GROUP)))
    pairs = slots.reshape(rows, -1, window12.GROUP // 2, 2)
    pairs = pairs[..., 0] | (pairs[..., 1] << 16)
    return window12.pack(pairs), window12.is_escape(codes, top)


def _slots(words: Array, top: Array, columns: int) -> UInt16[Array, "rows columns"]:
    pairs = window12.unpack(words)
    slots = jnp.stack([pairs & 0xFFFF, pairs >> 16], axis=-1).astype(jnp.uint16)
    return window12.from_slots(slots.reshape(words.shape[0], -1)[:, :columns], top)


def extent(weight: ResidentTensor) -> Extent:
    """Rows and columns."""
    return weight.logical, (1, 1)


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The dense weight. Pure JAX: call it inside jit or out."""
    arrays = weight.arrays
    codes = _slots(arrays["words"], arrays["top"], weight.matrix[1])
    count = jnp.arange(arrays["escape_columns"].shape[0], dtype=jnp.int32)
    row = jnp.searchsorted(arrays["escape_starts"], count, side="right") - 1
    at = row, arrays["escape_columns"]
    return bf16.numbers(codes.at[at].set(arrays["escape_codes"], mode="drop"), dtype)


def take(
    weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any
) -> Shaped[Array, "ids columns"]:
    """Rows of the weight."""
    arrays, columns = weight.arrays, weight.matrix[1]
    codes = _slots(arrays["words"][ids], arrays["top"], columns)
    if limit := weight.option("row_escapes"):
        index = arrays["escape_starts"][ids][:, None] + jnp.arange(limit)
        valid = index < arrays["escape_starts"][ids + 1][:, None]
        index = jnp.minimum(index, arrays["escape_columns"].shape[0] - 1)
        column = jnp.where(valid, arrays["escape_columns"][index], columns)
        at = jnp.arange(ids.shape[0])[:, None], column
        codes = codes.at[at].set(arrays["escape_codes"][index], mode="drop")
    return bf16.numbers(codes, dtype)


LAYOUT = Layout(
    name="reference_window12",
    backend="reference",
    stacked=("words", 3),
    lists={"escape_columns": (-1, (0,)), "escape_codes": (-1, (0,))},
    largest=("row_escapes",),
    holds=bf16.holds,
    shapes=shapes,
    pack=pack,
    extent=extent,
    decode=decode,
    take=take,
)
