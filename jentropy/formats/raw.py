"""Anything that no number format describes: integers, booleans, other floats."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .element import RAW, ElementFormat, Field


@lru_cache
def raw_element(dtype: np.dtype) -> ElementFormat:
    """An element of one field, `code`, as wide as the dtype. It has no values of its own.

    Args:
      dtype: any that is not of objects.

    Example:
      >>> raw_element(np.dtype(np.int64)).code_bits
      64
    """
    dtype = np.dtype(dtype)
    field = Field(name="code", bits=8 * dtype.itemsize)
    return ElementFormat(name=RAW, dtype=dtype, fields=(field,))
