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

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt16, UInt32

from jentropy import modes
from jentropy.codecs import window12
from jentropy.entropy import histogram
from jentropy.formats import Format
from jentropy.pallas_kernels.resident import ResidentTensor

from .matrix import Matrices, Packed, escapes_of, sized
from .tiles import ceil_to

NAME, BACKEND = "reference_window12", "reference"
REDUCES = None  # as it is stored, whatever products sum over
COLUMNS: dict[str, int] = {}  # arrays are whole on every device
ROWS = COLUMNS
STACKED = ("words", 3)  # an array, and the axes that it has for a single matrix

LEAST_ESCAPES, SHARE = 8, 1 << 11  # of lists and rows; weights for each escape


def holds(number_format: Format) -> bool:
    """Plain BF16."""
    return number_format.element.name == "BF16" and not number_format.parameters


def extent(weight: ResidentTensor) -> tuple[int, int]:
    """Rows and columns."""
    return weight.logical


def pack(weight: Matrices) -> Packed:
    """Lays out BF16 codes."""
    codes, (rows, columns) = weight.codes["code"], weight.matrix
    words, tops, found = [], [], []
    alone = not weight.stack and modes.explicit_mesh(codes) is None  # is taken as it lies
    for matrix in [codes] if alone else codes.reshape(-1, rows, columns):
        host = np.asarray(matrix)
        counts = histogram.count(host, bits=16).reshape(2, 256, 128).sum(axis=(0, 2))
        top = window12.choose_top(counts)
        packed, escapes = _pack_words(matrix, np.uint16(top))
        words.append(packed)
        tops.append(top)
        row, column = np.nonzero(np.asarray(escapes))
        found.append((row, column, host[row, column]))
    most = ceil_to(max(row.size for row, _, _ in found), _room(rows * columns))
    per_row = [np.bincount(row, minlength=rows) for row, _, _ in found]
    # On the host: what JAX does with a new shape is compiled, `jnp.asarray` even.
    lists: dict[str, np.ndarray] = {
        "top": np.array(tops, np.uint16),
        "escape_starts": np.stack([np.append(0, np.cumsum(n)) for n in per_row]).astype(np.int32),
        "escape_columns": np.stack(
            [np.pad(c, (0, most - c.size), constant_values=columns) for _, c, _ in found]
        ).astype(np.int32),
        "escape_codes": np.stack([np.pad(c, (0, most - c.size)) for _, _, c in found]),
    }
    whole = words[0] if alone else jnp.stack(words).reshape(*weight.stack, *words[0].shape)
    stacked = {
        "words": whole,
        **{n: jax.device_put(a.reshape((*weight.stack, *a.shape[1:]))) for n, a in lists.items()},
    }
    limit = max(int(n.max(initial=0)) for n in per_row)
    return stacked, {"row_escapes": _row_escapes(limit)}


def abstract(weight: Matrices) -> Packed:
    """What `pack` makes of Gaussian weights."""
    (rows, columns), stack = weight.matrix, weight.stack
    most = _room(rows * columns)
    arrays = {
        "words": sized(jnp.uint32, *stack, rows, -(-columns // window12.GROUP), window12.WORDS),
        "top": sized(jnp.uint16, *stack),
        "escape_starts": sized(jnp.int32, *stack, rows + 1),
        "escape_columns": sized(jnp.int32, *stack, most),
        "escape_codes": sized(jnp.uint16, *stack, most),
    }
    return arrays, {"row_escapes": _row_escapes(3 * escapes_of(columns))}


# Rounded up so that tensors alike share a compiled program.


def _room(weights: int) -> int:
    """Escapes that lists have room for, or multiples: more than Gaussian weights have."""
    return max(LEAST_ESCAPES, weights // SHARE)


def _row_escapes(most: int) -> int:
    return max(LEAST_ESCAPES, 1 << (most - 1).bit_length()) if most else 0


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


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "*shape"]:
    """The dense weight. Pure JAX: call it inside jit or out."""
    own = {"words": 3, "top": 0, "escape_starts": 1, "escape_columns": 1, "escape_codes": 1}
    arrays = {
        name: array.reshape(math.prod(weight.stack), *array.shape[array.ndim - own[name] :])
        for name, array in weight.arrays.items()
    }
    codes = jax.vmap(partial(_decode_matrix, columns=weight.matrix[1]))(arrays)
    numbers = jax.lax.bitcast_convert_type(codes.reshape(weight.shape), jnp.bfloat16)
    return numbers.astype(dtype)


def _decode_matrix(arrays: dict[str, Array], *, columns: int) -> UInt16[Array, "rows columns"]:
    codes = _slots(arrays["words"], arrays["top"], columns)
    count = arrays["escape_columns"].shape[0]
    starts = arrays["escape_starts"]
    row = jnp.searchsorted(starts, jnp.arange(count, dtype=jnp.int32), side="right") - 1
    return codes.at[row, arrays["escape_columns"]].set(arrays["escape_codes"], mode="drop")


@partial(jax.jit, static_argnames="dtype")
def take_rows(
    weight: ResidentTensor, ids: Int[Array, "*batch"], dtype: Any
) -> Shaped[Array, "*batch columns"]:
    """Rows of a two-dimensional weight; only those rows are decoded."""
    arrays, (rows, columns) = weight.arrays, weight.matrix
    flat = jnp.clip(ids.reshape(-1), 0, rows - 1)
    codes = _slots(arrays["words"][flat], arrays["top"], columns)
    limit = weight.option("row_escapes")
    if limit:
        index = arrays["escape_starts"][flat][:, None] + jnp.arange(limit)
        valid = index < arrays["escape_starts"][flat + 1][:, None]
        index = jnp.minimum(index, arrays["escape_columns"].shape[0] - 1)
        column = jnp.where(valid, arrays["escape_columns"][index], columns)
        at = jnp.arange(flat.shape[0])[:, None]
        codes = codes.at[at, column].set(arrays["escape_codes"][index], mode="drop")
    values = jax.lax.bitcast_convert_type(codes, jnp.bfloat16)
    return values.reshape(*ids.shape, columns).astype(dtype)
