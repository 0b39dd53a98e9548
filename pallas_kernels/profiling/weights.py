"""Resident weights of the TPU layouts without data: shapes, dtypes and options only.

They are what `to_resident` makes of a weight [N, K] with Gaussian numbers, at no cost, however
large: `ResidentTensor` whose leaves are `jax.ShapeDtypeStruct`.
"""

from __future__ import annotations

from jentropy import formats
from jentropy.formats import WHOLE, Format
from jentropy.pallas_kernels import abstract
from jentropy.pallas_kernels.conversion import to_resident
from jentropy.pallas_kernels.resident import ResidentTensor

TENSOR = None  # a block of all weights


def _scales(number_format: Format, block: tuple[int, ...] | None) -> Format:
    """The same format with other blocks."""
    for parameter in number_format.parameters:
        number_format = number_format.with_parameter(parameter.name, block=block)
    return number_format


FORMATS: dict[str, Format] = {
    "BF16": formats.FORMATS["BF16"],
    "FP8 tensor": _scales(formats.FP8_ROW, TENSOR),
    "FP8 row": formats.FP8_ROW,
    "FP8 128x128": formats.FP8_BLOCK,
    "MXFP8": formats.MXFP8,
    "INT8 row": formats.INT8_ROW,
    "INT4 row": _scales(formats.INT4_GROUP, (1, WHOLE)),
    "INT4 g32": _scales(formats.INT4_GROUP, (32,)),
    "INT4 g128": formats.INT4_GROUP,
    "INT4 row zeros": _scales(formats.ASYMMETRIC_INT4, (1, WHOLE)),
    "INT4 g32 zeros": _scales(formats.ASYMMETRIC_INT4, (32,)),
    "INT4 g128 zeros": _scales(formats.ASYMMETRIC_INT4, (128,)),
}


def abstract_weight(number_format: Format, k: int, n: int) -> ResidentTensor:
    """A weight [n, k] in the TPU's layout, for products that sum over k.

    Example:
      >>> w = abstract_weight(FORMATS["INT4 g128"], 4096, 14336)
      >>> w.shape, round(w.bits_per_weight, 3)
      ((14336, 4096), 4.125)
    """
    made = to_resident(abstract.abstract_weight(number_format, (n, k)), "tpu")
    assert made.backend == "tpu", number_format
    return made
