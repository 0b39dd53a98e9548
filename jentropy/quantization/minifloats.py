"""Elements of any exponent and mantissa."""

from __future__ import annotations

import numpy as np

from jentropy.formats import ElementFormat, Field


def minifloat_element(exponent: int, mantissa: int, bias: int | None = None) -> ElementFormat:
    """A float of a sign, an exponent and a mantissa, finite in all codes, with subnormals.

    Args:
      exponent, mantissa: bits.
      bias: of the exponent; None: 2^(exponent - 1) - 1, and at least 1.

    Example:
      >>> minifloat_element(2, 3).decode(np.uint8([1, 31, 63])).tolist()
      [0.125, 7.5, -7.5]
    """
    told = max(1, (1 << (exponent - 1)) - 1)
    bias = told if bias is None else bias
    bits = 1 + exponent + mantissa
    mantissas = (Field(name="mantissa", bits=mantissa),) if mantissa else ()
    return ElementFormat(
        name=f"FP{bits}_E{exponent}M{mantissa}" + (f"_BIAS{bias}" if bias != told else ""),
        dtype=np.dtype(np.uint8 if bits <= 8 else np.uint16),
        fields=(Field(name="sign", bits=1), Field(name="exponent", bits=exponent), *mantissas),
        bias=bias,
    )
