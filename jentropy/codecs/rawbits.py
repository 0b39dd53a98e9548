"""Codes of 16 bits cut into a coded top and raw bits, and put together again, in jitted JAX.

A code's *raw bits* are its sign on top of its lowest bits, `bits` in all; its *top* lies between.
Raw bits are cut into *planes* of 8, 4, 2 and 1 bits that add to `bits`, lowest bits first. A plane
of width b takes blocks of 64 codes: byte j of the 8 b bytes of a block has codes j, j + 8 b,
j + 16 b, ... of the block, lowest first, which vector units split without crossing bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt8, UInt16

from .kernels import in_one_kernel, repeat

BLOCK = 64  # codes
PROGRAMS = (1 << 16, 1 << 18, 1 << 20)  # codes that `split` and `merge` are compiled for
SLAB = 64  # blocks that are in the first cache at a time
# Factors that bring each part of a byte to its top; uint16 has no variable shift on AVX2.
_FACTORS = {8: [1], 4: [16, 1], 2: [64, 16, 4, 1], 1: [128, 64, 32, 16, 8, 4, 2, 1]}


def widths(bits: int) -> list[int]:
    """Widths of the planes that raw bits are cut into, lowest bits first."""
    return [8] * (bits // 8) + [b for b in (4, 2, 1) if bits & b]


def plane_bytes(size: int, width: int) -> int:
    """Bytes of a plane of `size` codes."""
    return -(-size // BLOCK) * 8 * width


def plane_sizes(size: int, bits: int) -> list[int]:
    """Bytes of each plane of `size` codes."""
    return [plane_bytes(size, width) for width in widths(bits)]


def program_size(size: int) -> int:
    """Codes of the program that takes `size` of them; few programs are compiled."""
    return next((n for n in PROGRAMS if n >= size), -(-size // BLOCK) * BLOCK)


@partial(jax.jit, static_argnames="bits")
def split(
    codes: UInt16[Array, " n"],
    contexts: UInt8[Array, " n"],
    first: UInt16[Array, ""],
    count: UInt16[Array, ""],
    *,
    bits: int,
) -> tuple[UInt8[Array, " n"], list[UInt8[Array, " _"]]]:
    """Symbols top - first - context, `count` for those below 0 or not below it; planes.

    Args:
      codes: a multiple of BLOCK of them.
    """
    symbols, planes = _split(codes, contexts, first, count, bits)
    return symbols, [plane.reshape(-1) for plane in planes]


def _split(
    codes: Any, contexts: Any, first: Any, count: Any, bits: int
) -> tuple[Array, list[Array]]:
    """Symbols in the shape of the codes, planes by blocks.

    Args:
      codes, contexts: of one axis, or [blocks, BLOCK].
    """
    low = bits - 1
    raw = codes & ((1 << low) - 1) | (codes >> 15) << low
    symbols = top_of(codes, bits) - first - contexts.astype(jnp.uint16)
    symbols = jnp.minimum(symbols, count)  # what is below 0 has wrapped
    planes, below = [], 0
    for b in widths(bits):
        part = (raw >> below) & ((1 << b) - 1)
        if codes.ndim > 1:
            parts = [part[:, i : i + 8 * b] for i in range(0, BLOCK, 8 * b)]
        else:
            by_block = part.astype(jnp.uint8).reshape(-1, 8 // b, 8 * b)
            parts = [by_block[:, i] for i in range(8 // b)]
        plane = parts[0]
        for i, more in enumerate(parts[1:], 1):
            plane = plane | more << (i * b)
        planes.append(plane.astype(jnp.uint8))
        below += b
    return symbols.astype(jnp.uint8), planes


def split_slabs(
    codes: UInt16[Array, " n"],
    contexts: UInt8[Array, " n"],
    first: UInt16[Array, "*slabs"],
    count: UInt16[Array, "*slabs"],
    slabs: Int32[Array, ""] | None = None,
    *,
    bits: int,
) -> tuple[UInt8[Array, " n"], list[UInt8[Array, " _"]]]:
    """`split`, to be part of a kernel; n a multiple of SLAB blocks.

    Args:
      first, count: of each slab, or of all.
      slabs: how many are looked at; None: all.
    """
    count_of_slabs = codes.size // (SLAB * BLOCK)
    # XLA's CPU backend finds vectors in rows of a block (BF16 .3 ns a code, .8 without), but for
    # planes of a bit (FP16 .6 and .4).
    in_blocks = min(widths(bits)) > 1
    rows, zeros = (-1, BLOCK) if in_blocks else (-1,), (np.int32(0),) * in_blocks
    codes, contexts = codes.reshape(rows), contexts.reshape(rows)

    def slab(array: Array, i: Any) -> Array:
        sizes = (array.shape[0] // count_of_slabs, *array.shape[1:])
        return jax.lax.dynamic_slice(array, (i * np.int32(sizes[0]), *zeros), sizes)

    def step(i: Any, outs: list[Array]) -> list[Array]:
        window = _of_slab(first, i), _of_slab(count, i)
        symbols, planes = _split(slab(codes, i), slab(contexts, i), *window, bits)
        parts = [symbols, *planes] if in_blocks else [symbols, *(p.reshape(-1) for p in planes)]
        return [
            jax.lax.dynamic_update_slice(out, part, (i * np.int32(part.shape[0]), *zeros))
            for out, part in zip(outs, parts, strict=True)
        ]

    sizes = [codes.size, *plane_sizes(codes.size, bits)]
    blocks = codes.size // BLOCK
    shapes = [(blocks, n // blocks) if in_blocks else (n,) for n in sizes]
    outs = [jax.lax.full(shape, 0, jnp.uint8) for shape in shapes]
    symbols, *planes = repeat(count_of_slabs if slabs is None else slabs, step, outs)
    return symbols.reshape(-1), [plane.reshape(-1) for plane in planes]


def _of_slab(values: Any, i: Any) -> Any:
    """A slab's value; values: of each, or one of all."""
    return jax.lax.dynamic_index_in_dim(values, i, keepdims=False) if values.ndim else values


@partial(jax.jit, static_argnames="bits")
def split_some(
    codes: UInt16[Array, " n"],
    contexts: UInt8[Array, " n"],
    first: UInt16[Array, " slabs"],
    count: UInt16[Array, " slabs"],
    slabs: Int32[Array, ""],
    *,
    bits: int,
) -> tuple[UInt8[Array, " n"], list[UInt8[Array, " _"]]]:
    """`split` of the first slabs, each with a window of its own, in one kernel of a CPU."""
    return in_one_kernel(partial(split_slabs, bits=bits), codes, contexts, first, count, slabs)


@partial(jax.jit, static_argnames="bits")
def merge(
    symbols: UInt8[Array, " n"],
    contexts: UInt8[Array, " n"],
    planes: list[UInt8[Array, " _"]],
    first: UInt16[Array, ""],
    *,
    bits: int,
) -> UInt16[Array, " n"]:
    """Codes of symbols (top - first - context) and planes: the inverse of `split`."""
    raw = jax.lax.platform_dependent(
        *planes,
        tpu=lambda *planes: _raw_by_rows(planes, bits),
        default=lambda *planes: _raw_by_factors(_apart(planes, bits), bits).reshape(-1),
    )
    return _with_raw(symbols.astype(jnp.uint16) + contexts.astype(jnp.uint16) + first, raw, bits)


def _with_raw(top: Any, raw: Any, bits: int) -> Any:
    """Codes of tops and raw bits."""
    low = bits - 1
    return top << low & 0x7FFF | raw & ((1 << low) - 1) | (raw >> low) << 15


@partial(jax.jit, static_argnames="bits")
def merge_some(
    symbols: UInt8[Array, " n"],
    contexts: UInt8[Array, " n"],
    planes: list[UInt8[Array, " _"]],
    first: UInt16[Array, " slabs"],
    slabs: Int32[Array, ""],
    *,
    bits: int,
) -> UInt16[Array, "blocks *halves fine"]:
    """`merge` of the first slabs, each with a window of its own, in one kernel of a CPU."""

    def kernel(symbols, contexts, first, slabs, *planes):
        return merge_slabs(symbols, contexts, planes, None, first, slabs, bits=bits)

    return in_one_kernel(kernel, symbols, contexts, first, slabs, *planes)


def merge_slabs(
    symbols: UInt8[Array, "*codes"],
    contexts: UInt8[Array, "*codes"],
    planes: Sequence[UInt8[Array, " _"]],
    front: UInt8[Array, " few"] | None,
    first: UInt16[Array, "*slabs"],
    slabs: Int32[Array, ""] | None = None,
    *,
    bits: int,
) -> UInt16[Array, "blocks *halves fine"]:
    """`merge`, to be part of a kernel; of a multiple of SLAB blocks.

    A slab at a time, and of the shape in whose loops XLA's CPU backend finds vectors (twice as fast
    as `merge`).

    Args:
      front: bytes that the first plane begins with, whatever is there; None: what is there.
      first: of each slab, or of all.
      slabs: how many are merged; None: all.
    """
    shape = _block_shape(bits)
    count = symbols.size // BLOCK
    zeros = (np.int32(0),) * len(shape)

    def slab(array: Array, i: Any) -> Array:
        sizes = (SLAB, *array.shape[1:])
        return jax.lax.dynamic_slice(array, (i * np.int32(SLAB), *zeros), sizes)

    tops = [part.reshape(count, *shape) for part in (symbols, contexts)]
    apart = _apart(planes, bits)

    def put(codes: Array, slabs: list[Array], i: Any) -> Array:
        symbol, context = (slab(part, i).astype(jnp.uint16) for part in tops)
        top = symbol + context + _of_slab(first, i)
        part = _with_raw(top, _raw_by_factors(slabs, bits), bits)
        return jax.lax.dynamic_update_slice(codes, part, (i * np.int32(SLAB), *zeros))

    def step(i: Any, codes: Array) -> Array:
        return put(codes, [slab(plane, i) for plane in apart], i)

    most = count // SLAB if slabs is None else slabs
    codes = repeat(most, step, jax.lax.full((count, *shape), 0, jnp.uint16))
    if front is None:
        return codes
    changed, *others = (slab(plane, np.int32(0)) for plane in apart)
    changed = jax.lax.dynamic_update_slice(changed.reshape(-1), front, (np.int32(0),))
    return put(codes, [changed.reshape(SLAB, *apart[0].shape[1:]), *others], np.int32(0))


def _block_shape(bits: int) -> tuple[int, ...]:
    """Halves of halves of a block, down to a part of a byte of the narrowest plane."""
    depth = max(8 // b for b in widths(bits)).bit_length() - 1
    return (2,) * depth + (BLOCK >> depth,)


def _apart(planes: Sequence[UInt8[Array, " _"]], bits: int) -> list[UInt8[Array, " ..."]]:
    """Planes by blocks, as they stand in `_block_shape`.

    The outer halves of a block tell the part of a byte, of which a plane has none; the inner ones,
    with what is left, its place.
    """
    apart = []
    for width, plane in zip(widths(bits), planes, strict=True):
        outer = (8 // width).bit_length() - 1
        apart.append(plane.reshape(-1, *(1,) * outer, *_block_shape(bits)[outer:]))
    return apart


def _raw_by_factors(
    apart: Sequence[UInt8[Array, " ..."]], bits: int
) -> UInt16[Array, "blocks *halves fine"]:
    """Raw bits of planes (`_apart`); parts of a byte are brought to its top by products."""
    raw, below = jnp.zeros((), jnp.uint16), 0
    for width, plane in zip(widths(bits), apart, strict=True):
        outer = (8 // width).bit_length() - 1
        factors = np.array(_FACTORS[width], np.uint16)
        factors = factors.reshape(1, *(2,) * outer, *(1,) * (plane.ndim - 1 - outer))
        part = plane.astype(jnp.uint16) * factors
        raw = raw | ((part >> (8 - width)) & ((1 << width) - 1)) << below
        below += width
    return raw


def _raw_by_rows(planes: Sequence[UInt8[Array, " _"]], bits: int) -> UInt16[Array, " n"]:
    """The same with a block to a row, of which a TPU's compiler makes a program 20 times sooner."""
    place = np.arange(BLOCK, dtype=np.uint32)[None]
    raw, below = jnp.zeros((), jnp.uint32), 0
    for width, plane in zip(widths(bits), planes, strict=True):
        by_block = plane.reshape(-1, 8 * width).astype(jnp.uint32)
        part = jnp.concatenate([by_block] * (8 // width), axis=1)
        raw = raw | ((part >> (place // (8 * width) * width)) & ((1 << width) - 1)) << below
        below += width
    return raw.astype(jnp.uint16).reshape(-1)


def top_of(codes: Any, bits: int) -> Any:
    """Tops of codes; NumPy or JAX arrays, uint16."""
    return (codes & np.uint16(0x7FFF)) >> np.uint16(bits - 1)


def with_top(codes: Any, top: Any, bits: int) -> Any:
    """Codes with another top; NumPy or JAX arrays, uint16."""
    kept = np.uint16(1 << 15 | (1 << (bits - 1)) - 1)
    return codes & kept | top << np.uint16(bits - 1) & np.uint16(0x7FFF)
