"""Integer elements.

INT8, INT4           two's complement
UINT8, UINT4, UINT6  0, 1, 2, ...: codes with a zero point; the scales of GGUF's K-quants
INT8_EXCESS128, INT4_EXCESS8, INT6_EXCESS32
                     code - 128, code - 8, code - 32: how packers store signed numbers
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from .element import ElementFormat, Field


def _integer(name: str, dtype: Any, bits: int, excess: int = 0) -> ElementFormat:
    return ElementFormat(
        name=name, dtype=np.dtype(dtype), fields=(Field(name="code", bits=bits),), excess=excess
    )


INT8 = _integer("INT8", np.int8, 8)
INT4 = _integer("INT4", ml_dtypes.int4, 4)
UINT8 = _integer("UINT8", np.uint8, 8)
UINT4 = _integer("UINT4", np.uint8, 4)
UINT6 = _integer("UINT6", np.uint8, 6)
INT8_EXCESS128 = _integer("INT8_EXCESS128", np.uint8, 8, excess=128)
INT4_EXCESS8 = _integer("INT4_EXCESS8", np.uint8, 4, excess=8)
INT6_EXCESS32 = _integer("INT6_EXCESS32", np.uint8, 6, excess=32)
