"""Number formats: what the bits of an element code mean.

To add a format: one `Format` in a file here, one line in `FORMATS`. Analysis, archive and the
tests take it from there.
"""

from typing import Any

from .floats import BF16, FP8_E4M3, FP8_E5M2, FP16, FP32
from .format import Field, Format, code_dtype, codes_of
from .raw import raw_format

FORMATS: dict[str, Format] = {f.name: f for f in (BF16, FP16, FP32, FP8_E4M3, FP8_E5M2)}
RAW = "RAW"  # everything that no format describes; `raw_format(dtype)` stores it whole


def format_of_dtype(dtype: Any) -> str:
    """Name of the format whose values have this dtype, RAW if none has."""
    for name, number_format in FORMATS.items():
        if number_format.dtype == dtype:
            return name
    return RAW


def format_named(name: str, dtype: Any) -> Format:
    """The format of a tensor: `FORMATS[name]`, or the raw format of its dtype."""
    return raw_format(dtype) if name == RAW else FORMATS[name]


__all__ = [
    "BF16",
    "FORMATS",
    "FP16",
    "FP8_E4M3",
    "FP8_E5M2",
    "FP32",
    "RAW",
    "Field",
    "Format",
    "code_dtype",
    "codes_of",
    "format_named",
    "format_of_dtype",
    "raw_format",
]
