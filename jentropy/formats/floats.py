"""IEEE 754 binary16 and binary32, and bfloat16.

BF16:  sign 1 | exponent 8 | mantissa 7      bias 127
FP16:  sign 1 | exponent 5 | mantissa 10     bias 15
FP32:  sign 1 | exponent 8 | mantissa 23     bias 127
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
