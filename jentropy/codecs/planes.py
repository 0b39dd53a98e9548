"""Codes as planes: the symbols that the archive codes one by one.

The first plane of a floating-point format is its exponent with as many leading mantissa bits as
fit a byte; what is left, sign first, follows in bytes:

    BF16   exponent 8                  | sign 1, mantissa 7
    FP16   exponent 5, mantissa 3      | sign 1, mantissa 7
    FP32   exponent 8                  | sign 1, mantissa 7 | mantissa 8 | mantissa 8

Codes of a byte are one plane. Those of RAW are cut into bytes from the most significant down, or
each byte into its high and its low half (*nibbles*), for 4-bit numbers packed in wider integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt, UInt8

from jentropy.formats import RAW, ElementFormat, code_dtype

BYTE, NIBBLE = 8, 4
_SIZES = tuple(1 << bits for bits in range(10, 31, 2))  # array sizes of compiled programs


@dataclass(frozen=True, slots=True)
class Bits:
    """A run of bits of a code."""

    low: int  # bits below it
    count: int


Plane = tuple[Bits, ...]  # most significant run first; BYTE bits in all, or NIBBLE


@lru_cache
def planes_of(element: ElementFormat, nibbles: bool = False) -> tuple[Plane, ...]:
    """The planes of a format, in the order that they are stored in.

    Args:
      nibbles: of RAW, planes of half a byte.
    """
    bits = element.code_bits
    if element.name == RAW or bits == BYTE:
        step = NIBBLE if nibbles else BYTE
        return tuple((Bits(low, step),) for low in reversed(range(0, bits, step)))
    exponent = element.field_bits("exponent")
    leading = BYTE - exponent
    rest = element.field_bits("mantissa") - leading  # mantissa bits that follow the sign
    first = Bits(element.shift("exponent") - leading, BYTE)
    head = BYTE - 1
    second = (Bits(bits - 1, 1), Bits(rest - head, head))
    tail = [(Bits(low, BYTE),) for low in reversed(range(0, rest - head, BYTE))]
    return ((first,), second, *tail)


def plane_counts(
    element: ElementFormat, slices: Sequence[np.ndarray], nibbles: bool = False
) -> list[np.ndarray]:
    """Histogram of each plane's symbols, int64[256] each, from 16-bit histograms of the codes.

    Args:
      slices: counts of bits 16 i and up of the codes, as `entropy.Counts` holds them.
    """
    counts = []
    for plane in planes_of(element, nibbles):
        counted = slices[plane[0].low // 16]
        symbols = _symbols_of_slice(plane, counted.size)
        # Exact: bincount adds in doubles, which hold every count below 2^53.
        histogram = np.bincount(symbols, weights=counted, minlength=1 << BYTE)
        counts.append(histogram.astype(np.int64))
    return counts


@lru_cache
def _symbols_of_slice(plane: Plane, codes: int) -> np.ndarray:
    """The plane's symbol of each value of the 16 bits that it lies in."""
    assert len({run.low // 16 for run in plane}) == 1, "a plane crosses no slice"
    values = np.arange(codes, dtype=np.uint32)
    symbols = np.zeros_like(values)
    for run in plane:
        part = (values >> np.uint32(run.low % 16)) & np.uint32((1 << run.count) - 1)
        symbols = symbols << np.uint32(run.count) | part
    return symbols


def split(codes: np.ndarray, element: ElementFormat, nibbles: bool = False) -> list[np.ndarray]:
    """Symbols of every plane, uint8[n] each, of codes[n]."""
    count = len(planes_of(element, nibbles))
    if element.name == RAW:
        columns = codes.view(np.uint8).reshape(codes.size, element.dtype.itemsize)[:, ::-1]
        if nibbles:
            columns = np.stack([columns >> NIBBLE, columns & 0xF], axis=-1)
        return list(np.ascontiguousarray(columns.reshape(codes.size, count).T))
    padded = np.pad(codes, (0, _padded_size(codes.size) - codes.size))
    return [
        np.asarray(_extract(padded, element=element, index=i))[: codes.size].copy()
        for i in range(count)
    ]


def merge(
    symbols: Sequence[np.ndarray], element: ElementFormat, nibbles: bool = False
) -> np.ndarray:
    """Codes of the symbols of all planes: the inverse of `split`."""
    size = symbols[0].size
    dtype = code_dtype(element.dtype)
    if element.name == RAW:
        columns = np.stack(symbols, axis=-1)
        if nibbles:
            columns = columns[:, ::2] << NIBBLE | columns[:, 1::2]
        return np.ascontiguousarray(columns[:, ::-1]).reshape(-1).view(dtype)
    rows = np.zeros((len(symbols), _padded_size(size)), np.uint8)
    for row, part in zip(rows, symbols, strict=True):
        row[:size] = part
    return np.asarray(_merge(rows, element=element))[:size]


@partial(jax.jit, static_argnames=("element", "index"))
def _extract(codes: UInt[Array, n], *, element: ElementFormat, index: int) -> UInt8[Array, n]:
    symbols = jnp.zeros_like(codes)
    for run in planes_of(element)[index]:
        symbols = symbols << run.count | (codes >> run.low) & ((1 << run.count) - 1)
    return symbols.astype(jnp.uint8)


@partial(jax.jit, static_argnames="element")
def _merge(symbols: UInt8[Array, "planes n"], *, element: ElementFormat) -> UInt[Array, n]:
    dtype = jnp.dtype(code_dtype(element.dtype))
    codes = jnp.zeros(symbols.shape[1], dtype)
    for plane, row in zip(planes_of(element), symbols, strict=True):
        below = BYTE
        for run in plane:
            below -= run.count
            part = (row.astype(dtype) >> below) & ((1 << run.count) - 1)
            codes = codes | part << run.low
    return codes


def _padded_size(size: int) -> int:
    return next((s for s in _SIZES if s >= size), size)
