"""IEEE 754 binary16 and binary32, bfloat16, and the 8-bit floats of the OCP.

BF16:  sign 1 | exponent 8 | mantissa 7      bias 127
FP16:  sign 1 | exponent 5 | mantissa 10     bias 15
FP32:  sign 1 | exponent 8 | mantissa 23     bias 127
FP8_E4M3:  sign 1 | exponent 4 | mantissa 3  bias 7, no Inf; NaN is 0x7F and 0xFF
FP8_E5M2:  sign 1 | exponent 5 | mantissa 2  bias 15

References:
  OCP 8-bit Floating Point Specification (OFP8), revision 1.0.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from .format import Field, Format


def _float(name: str, dtype: Any, exponent: int, mantissa: int) -> Format:
    return Format(
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
