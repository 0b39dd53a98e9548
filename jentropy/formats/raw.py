"""Anything that no number format describes: integers, booleans, other floats."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .format import Field, Format


@lru_cache
def raw_format(dtype: np.dtype) -> Format:
    """A format of one field, `code`, as wide as the dtype. It has no values of its own."""
    dtype = np.dtype(dtype)
    return Format(name="RAW", dtype=dtype, fields=(Field(name="code", bits=8 * dtype.itemsize),))
