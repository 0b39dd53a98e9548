"""Codes of 4 or 8 bits packed in wider integers, the first code in the low bits."""

from __future__ import annotations

from typing import Any

import numpy as np

NIBBLE, OCTET = 4, 8


def unpack(words: np.ndarray, bits: int, *, axis: int = -1, count: int | None = None) -> np.ndarray:
    """Codes of packed integers.

    Args:
      words: integers of any width.
      bits: of a code, 4 or 8.
      axis: the axis along which a word's codes run.
      count: codes along that axis, if the last word holds fewer.

    Returns:
      uint8 codes; `axis` is 8 * itemsize / bits times as long, or `count`.

    Example:
      >>> unpack(np.array([0x21, 0x43], np.uint8), 4).tolist()
      [1, 2, 3, 4]
    """
    last = np.ascontiguousarray(np.moveaxis(words, axis, -1))
    codes = last.astype(last.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    if bits == NIBBLE:
        octets = codes
        codes = np.empty((*octets.shape[:-1], 2 * octets.shape[-1]), np.uint8)
        codes[..., 0::2] = octets & 0xF
        codes[..., 1::2] = octets >> NIBBLE
    return np.moveaxis(codes[..., :count], -1, axis)


def pack(codes: np.ndarray, bits: int, dtype: Any = np.uint8) -> np.ndarray:
    """The inverse of `unpack` along the last axis; the last word is filled up with zeros."""
    per_word = OCTET * np.dtype(dtype).itemsize // bits
    padding = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per_word)]
    octets: np.ndarray = np.pad(codes.astype(np.uint8), padding)
    if bits == NIBBLE:
        octets = octets[..., 0::2] | octets[..., 1::2] << NIBBLE
    return np.ascontiguousarray(octets).view(np.dtype(dtype).newbyteorder("<"))
