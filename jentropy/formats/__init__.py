"""Number formats: what the bits of weights, scales and zero points mean.

To add a format: one `Format` in a file here, of elements in `ELEMENTS` (a new element is one
`ElementFormat` and a line there), and a line in `FORMATS`. Dequantisation, the encoders, analysis,
archive and the tests take it from there.
"""

from typing import Any

from .blocks import (
    ASYMMETRIC_INT4,
    FP8_BLOCK,
    FP8_ROW,
    INT4_GROUP,
    INT8_ROW,
    MXFP4,
    MXFP8,
    NVFP4,
    NVFP4_DIVISOR,
)
from .decoders import DECODERS
from .dequantizing import GROUP_INDEX, dequantize, dequantize_slabs
from .element import RAW, ElementFormat, Field, code_dtype, codes_of, raw_element
from .fitting import SCALE_RULES
from .floats import BF16, FP4_E2M1, FP8_E4M3, FP8_E5M2, FP8_E8M0, FP16, FP32
from .format import WHOLE, Format, Parameter, Role, expect_format
from .gradients import GRADIENT_RULES, fake_quantize
from .integers import (
    INT4,
    INT4_EXCESS8,
    INT6_EXCESS32,
    INT8,
    INT8_EXCESS128,
    UINT4,
    UINT6,
    UINT8,
)
from .packing import pack, unpack
from .quantized import QuantizedTensor, code_arrays, least_rank
from .quantizing import quantize
from .step import SideArray, Step
from .transforms import TRANSFORMS

_PLAIN = (BF16, FP16, FP32, FP8_E4M3, FP8_E5M2)  # weights without parameters; by dtype
_PARTS = (
    FP4_E2M1,
    FP8_E8M0,
    INT8,
    INT4,
    UINT8,
    UINT6,
    UINT4,
    INT8_EXCESS128,
    INT6_EXCESS32,
    INT4_EXCESS8,
)

ELEMENTS: dict[str, ElementFormat] = {e.name: e for e in (*_PLAIN, *_PARTS)}
FORMATS: dict[str, Format] = {
    **{e.name: Format(name=e.name, element=e) for e in _PLAIN},
    **{f.name: f for f in (FP8_BLOCK, MXFP8, MXFP4, NVFP4, INT8_ROW, INT4_GROUP)},
}


def format_of_dtype(dtype: Any) -> str:
    """Name of the format whose values have this dtype, RAW if none has.

    Args:
      dtype: of NumPy, `ml_dtypes` or JAX, or its name.

    Returns:
      A key of `FORMATS`, or RAW.

    Example:
      >>> import numpy as np
      >>> format_of_dtype(np.float16), format_of_dtype(np.int64)
      ('FP16', 'RAW')
    """
    return next((e.name for e in _PLAIN if e.dtype == dtype), RAW)


def element_named(name: str, dtype: Any) -> ElementFormat:
    """The element format of an array: `ELEMENTS[name]`, or the raw one of its dtype.

    Args:
      name: of an element, or RAW.
      dtype: of the array.

    Returns:
      How one of its codes is read.

    Example:
      >>> element_named("INT4", "uint8").code_bits, element_named("RAW", "int32").code_bits
      (4, 32)
    """
    return raw_element(dtype) if name == RAW else ELEMENTS[name]


def plain_format(dtype: Any) -> Format:
    """The format of an array of numbers, or of raw codes, that has no parameters.

    Args:
      dtype: of the array.

    Returns:
      A format of that element alone.

    Example:
      >>> plain_format("float32").name, plain_format("int16").name
      ('FP32', 'RAW')
    """
    name = format_of_dtype(dtype)
    return Format(name=name, element=element_named(name, dtype))


__all__ = [
    "ASYMMETRIC_INT4",
    "BF16",
    "DECODERS",
    "ELEMENTS",
    "FORMATS",
    "FP16",
    "FP32",
    "FP4_E2M1",
    "FP8_BLOCK",
    "FP8_E4M3",
    "FP8_E5M2",
    "FP8_E8M0",
    "FP8_ROW",
    "GRADIENT_RULES",
    "GROUP_INDEX",
    "INT4",
    "INT4_EXCESS8",
    "INT4_GROUP",
    "INT6_EXCESS32",
    "INT8",
    "INT8_EXCESS128",
    "INT8_ROW",
    "MXFP4",
    "MXFP8",
    "NVFP4",
    "NVFP4_DIVISOR",
    "QuantizedTensor",
    "RAW",
    "UINT4",
    "UINT6",
    "UINT8",
    "WHOLE",
    "ElementFormat",
    "Field",
    "Format",
    "Parameter",
    "SCALE_RULES",
    "Role",
    "SideArray",
    "Step",
    "TRANSFORMS",
    "code_arrays",
    "code_dtype",
    "codes_of",
    "dequantize",
    "dequantize_slabs",
    "element_named",
    "expect_format",
    "fake_quantize",
    "format_of_dtype",
    "least_rank",
    "pack",
    "plain_format",
    "quantize",
    "raw_element",
    "unpack",
]
