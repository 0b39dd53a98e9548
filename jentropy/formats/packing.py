"""Codes packed in wider integers without gaps, the first code in the low bits."""

from __future__ import annotations

from typing import Any

import numpy as np

NIBBLE, BYTE = 4, 8


def unpack(words: np.ndarray, bits: int, *, axis: int = -1, count: int | None = None) -> np.ndarray:
    """Codes of packed integers.

    Args:
      words: integers of any width.
      bits: of a code, 1 to 8.
      axis: the axis along which a word's codes run.
      count: codes along that axis, if the last word holds fewer.

    Returns:
      uint8 codes; `axis` is 8 * itemsize / bits times as long, cut to whole codes, or `count`.

    Example:
      >>> unpack(np.array([0x21, 0x43], np.uint8), 4).tolist()
      [1, 2, 3, 4]
    """
    last = np.ascontiguousarray(np.moveaxis(words, axis, -1))
    as_bytes = last.astype(last.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    if bits == BYTE:
        codes = as_bytes
    elif bits == NIBBLE:
        codes = np.empty((*as_bytes.shape[:-1], 2 * as_bytes.shape[-1]), np.uint8)
        codes[..., 0::2] = as_bytes & 0xF
        codes[..., 1::2] = as_bytes >> NIBBLE
    else:
        fill = as_bytes.shape[-1] * BYTE // bits
        single = np.unpackbits(as_bytes, axis=-1, bitorder="little")[..., : fill * bits]
        weights = (1 << np.arange(bits)).astype(np.uint8)
        codes = (single.reshape(*single.shape[:-1], fill, bits) * weights).sum(-1, dtype=np.uint8)
    return np.moveaxis(codes[..., :count], -1, axis)


def pack(codes: np.ndarray, bits: int, dtype: Any = np.uint8) -> np.ndarray:
    """The inverse of `unpack` along the last axis; the last word is filled up with zeros.

    Args:
      codes: uint8[..., n], below 2^bits.
      bits: of a code, 1 to 8.
      dtype: of the packed integers.

    Returns:
      dtype[..., ceil(n * bits / (8 * itemsize))].

    Example:
      >>> pack(np.array([1, 2, 3], np.uint8), 4).tolist()
      [33, 3]
    """
    single = np.unpackbits(
        codes.astype(np.uint8)[..., None], axis=-1, count=bits, bitorder="little"
    ).reshape(*codes.shape[:-1], -1)
    padding = [(0, 0)] * (codes.ndim - 1) + [
        (0, -single.shape[-1] % (BYTE * np.dtype(dtype).itemsize))
    ]
    as_bytes = np.packbits(np.pad(single, padding), axis=-1, bitorder="little")
    return as_bytes.view(np.dtype(dtype).newbyteorder("<"))
