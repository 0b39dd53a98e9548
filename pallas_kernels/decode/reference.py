"""Reference layout of window12 and its decode, in plain JAX.

Rows lie one after the other, each padded with zeros to a multiple of eight columns, so that a row
can be read alone:

    words:          uint32[rows, groups, 3]   eight weights to three words, `codecs.window12`
    top:            uint16[]                  top of the window
    escape_starts:  int32[rows + 1]           escapes of row r are starts[r] .. starts[r + 1] - 1
    escape_columns: int32[escapes]
    escape_codes:   uint16[escapes]
    limit `row_escapes`: at least the largest number of escapes of any row
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt16, UInt32

from jentropy.codecs import window12
from jentropy.entropy import histogram

if TYPE_CHECKING:
    from jentropy.pallas_kernels.resident import ResidentTensor


def pack(codes: np.ndarray) -> tuple[dict[str, jax.Array], tuple[tuple[str, int], ...]]:
    """Lays out BF16 codes, uint16[*stack, rows, columns]."""
    rows, columns = math.prod(codes.shape[:-1]), codes.shape[-1]
    flat = codes.reshape(rows, columns)
    exponents = histogram.count(flat, bits=16).reshape(2, 256, 128).sum(axis=(0, 2))
    top = window12.choose_top(exponents)
    words, escapes = _pack_words(flat, jnp.uint16(top))
    row, column = np.nonzero(np.asarray(escapes))
    per_row = np.bincount(row, minlength=rows)
    most = int(per_row.max(initial=0))
    arrays = {
        "words": words,
        "top": jnp.uint16(top),
        "escape_starts": jnp.asarray(np.concatenate([[0], np.cumsum(per_row)]), jnp.int32),
        "escape_columns": jnp.asarray(column, jnp.int32),
        "escape_codes": jnp.asarray(flat[row, column]),
    }
    # Rounded up so that tensors alike share a compiled program.
    return arrays, (("row_escapes", 1 << (most - 1).bit_length() if most else 0),)


@jax.jit
def _pack_words(
    codes: UInt16[Array, "rows columns"], top: UInt16[Array, ""]
) -> tuple[UInt32[Array, "rows groups 3"], Bool[Array, "rows columns"]]:
    rows, columns = codes.shape
    slots = window12.to_slots(codes, top).astype(jnp.uint32)
    slots = jnp.pad(slots, ((0, 0), (0, -columns % window12.GROUP)))
    pairs = slots.reshape(rows, -1, window12.GROUP // 2, 2)
    pairs = pairs[..., 0] | (pairs[..., 1] << 16)
    return window12.pack(pairs), window12.is_escape(codes, top)


def _slots(words: Array, top: Array, columns: int) -> Array:
    pairs = window12.unpack(words)
    slots = jnp.stack([pairs & 0xFFFF, pairs >> 16], axis=-1).astype(jnp.uint16)
    return window12.from_slots(slots.reshape(words.shape[0], -1)[:, :columns], top)


def decode_codes(weight: ResidentTensor) -> UInt16[Array, "*shape"]:
    """Every code of a reference-layout weight. Pure JAX: call it inside jit or out."""
    arrays, columns = weight.arrays, weight.shape[-1]
    codes = _slots(arrays["words"], arrays["top"], columns)
    count = arrays["escape_columns"].shape[0]
    row = (
        jnp.searchsorted(arrays["escape_starts"], jnp.arange(count, dtype=jnp.int32), side="right")
        - 1
    )
    codes = codes.at[row, arrays["escape_columns"]].set(
        arrays["escape_codes"], unique_indices=True, mode="promise_in_bounds"
    )
    return codes.reshape(weight.shape)


def decode(weight: ResidentTensor) -> Shaped[Array, "*shape"]:
    """The dense weight in its own dtype."""
    return jax.lax.bitcast_convert_type(decode_codes(weight), jnp.bfloat16)


@jax.jit
def take_rows(weight: ResidentTensor, ids: Int[Array, "*batch"]) -> Shaped[Array, "*batch columns"]:
    """Rows of a two-dimensional weight; only those rows are decoded."""
    arrays, (rows, columns) = weight.arrays, weight.shape
    flat = jnp.clip(ids.reshape(-1), 0, rows - 1)
    codes = _slots(arrays["words"][flat], arrays["top"], columns)
    limit = dict(weight.limits)["row_escapes"]
    if limit:
        index = arrays["escape_starts"][flat][:, None] + jnp.arange(limit)
        valid = index < arrays["escape_starts"][flat + 1][:, None]
        index = jnp.minimum(index, arrays["escape_columns"].shape[0] - 1)
        column = jnp.where(valid, arrays["escape_columns"][index], columns)
        at = jnp.arange(flat.shape[0])[:, None]
        codes = codes.at[at, column].set(arrays["escape_codes"][index], mode="drop")
    values = jax.lax.bitcast_convert_type(codes, jnp.bfloat16)
    return values.reshape(*ids.shape, columns)
