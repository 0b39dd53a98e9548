"""Floating-point elements, from IEEE 754, bfloat16, and the OCP's narrow ones.

BF16:  sign 1 | exponent 8 | mantissa 7      bias 127
FP16:  sign 1 | exponent 5 | mantissa 10     bias 15
FP32:  sign 1 | exponent 8 | mantissa 23     bias 127
FP8_E4M3:  sign 1 | exponent 4 | mantissa 3  bias 7, no Inf; NaN is 0x7F and 0xFF
FP8_E5M2:  sign 1 | exponent 5 | mantissa 2  bias 15
FP4_E2M1:  sign 1 | exponent 2 | mantissa 1  bias 1, neither Inf nor NaN: 0 .5 1 1.5 2 3 4 6
FP8_E8M0:  exponent 8                        2^(code - 127), a scale; NaN is 0xFF

References:
  OCP 8-bit Floating Point Specification (OFP8), revision 1.0; OCP Microscaling Formats (MX)
  Specification, version 1.0.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from .element import ElementFormat, Field


def _float(name: str, dtype: Any, exponent: int, mantissa: int) -> ElementFormat:
    return ElementFormat(
        name=name,
        dtype=np.dtype(dtype),
        fields=(
            Field(name="sign", bits=1),
            Field(name="exponent", bits=exponent),
            Field(name="mantissa", bits=mantissa),
        ),
        bias=(1 << (exponent - 1)) - 1,
    )


BF16 = _float("BF16", ml_dtypes.bfloat16, 8, 7)
FP16 = _float("FP16", np.float16, 5, 10)
FP32 = _float("FP32", np.float32, 8, 23)
FP8_E4M3 = _float("FP8_E4M3", ml_dtypes.float8_e4m3fn, 4, 3)
FP8_E5M2 = _float("FP8_E5M2", ml_dtypes.float8_e5m2, 5, 2)
FP4_E2M1 = _float("FP4_E2M1", ml_dtypes.float4_e2m1fn, 2, 1)
FP8_E8M0 = ElementFormat(
    name="FP8_E8M0",
    dtype=np.dtype(ml_dtypes.float8_e8m0fnu),
    fields=(Field(name="exponent", bits=8),),
    bias=127,
)
