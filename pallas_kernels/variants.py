"""The formats that kernels are tried, tested, timed and budgeted with, one line for each.

A variant is an element with scales of some blocks: what a kernel may take a way of its own for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from jentropy import formats
from jentropy.formats import (
    ASYMMETRIC_INT4,
    FP8_BLOCK,
    FP8_ROW,
    INT4_GROUP,
    INT8_ROW,
    MXFP8,
    WHOLE,
    Format,
    QuantizedTensor,
    code_arrays,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A format, and what it is used for beside tests.

    Attributes:
      trial: tried before a backend's kernels are used.
      bench: timed.
      rows: of x in products that have budgets on TPU.
      ceilings: what budgets of products of 16 rows must not be above, in bundles for a cycle of
        memory on v5e, v6e and v7x; () if it has no budgets.
      decode_ceilings: the same of decodes to dense BF16.
      experts: products with stacks of experts have budgets too.
      promised: what README says of its products.
    """

    number_format: Format
    trial: bool = False
    bench: bool = False
    rows: tuple[int, ...] = (16,)
    ceilings: tuple[float, ...] = ()
    decode_ceilings: tuple[float, ...] = (1.00, 1.00, 1.00)
    experts: bool = False
    promised: bool = False


def with_blocks(number_format: Format, block: tuple[int, ...] | None, **changes: Any) -> Format:
    """The same format, all its parameters of other blocks; None: one for all weights."""
    for parameter in number_format.parameters:
        number_format = number_format.with_parameter(parameter.name, block=block, **changes)
    return number_format


ROW = (1, WHOLE)
UINT8_ROW = with_blocks(ASYMMETRIC_INT4, ROW).with_element(formats.UINT8)

VARIANTS: dict[str, Variant] = {
    "BF16": Variant(
        number_format=formats.FORMATS["BF16"],
        trial=True,
        bench=True,
        rows=(16, 32),
        experts=True,
        ceilings=(0.40, 0.62, 1.10),
        promised=True,
    ),
    "FP8": Variant(number_format=formats.FORMATS["FP8_E4M3"]),
    "FP8 tensor": Variant(number_format=with_blocks(FP8_ROW, None), ceilings=(0.22, 0.38, 0.50)),
    "FP8 row": Variant(number_format=FP8_ROW, trial=True, bench=True, ceilings=(0.22, 0.38, 0.50)),
    "E5M2 row": Variant(number_format=FP8_ROW.with_element(formats.FP8_E5M2)),
    "FP8 128x128": Variant(
        number_format=FP8_BLOCK,
        bench=True,
        rows=(16, 32),
        experts=True,
        ceilings=(0.22, 0.38, 0.50),
        promised=True,
    ),
    "FP8 64x64": Variant(number_format=with_blocks(FP8_BLOCK, (64, 64))),
    "FP8 256x128": Variant(number_format=with_blocks(FP8_BLOCK, (256, 128))),
    "FP8 128x128 E8M0": Variant(
        number_format=with_blocks(FP8_BLOCK, (128, 128), element=formats.FP8_E8M0)
    ),
    "MXFP8": Variant(
        number_format=MXFP8,
        bench=True,
        rows=(8, 16),
        ceilings=(0.45, 0.66, 1.00),
        promised=True,
    ),
    "INT8 row": Variant(number_format=INT8_ROW, bench=True, ceilings=(0.45, 0.50, 0.65)),
    "INT8 32": Variant(
        number_format=with_blocks(INT8_ROW, (32,), element=formats.FP16).with_element(
            formats.INT8_EXCESS128
        )
    ),
    "UINT8 row": Variant(
        number_format=UINT8_ROW.with_parameter("zero_point", element=formats.UINT8)
    ),
    "INT4 row": Variant(number_format=with_blocks(INT4_GROUP, ROW), ceilings=(0.40, 0.60, 1.00)),
    "INT4 g32": Variant(
        number_format=with_blocks(INT4_GROUP, (32,)), rows=(8, 16), ceilings=(1.10, 1.10, 1.90)
    ),
    "INT4 g128": Variant(
        number_format=INT4_GROUP,
        trial=True,
        bench=True,
        rows=(8, 16, 32),
        experts=True,
        ceilings=(0.75, 0.95, 1.00),
        promised=True,
    ),
    "INT4 g128 FP32": Variant(number_format=with_blocks(INT4_GROUP, (128,), element=formats.FP32)),
    "INT4 row zeros": Variant(
        number_format=with_blocks(ASYMMETRIC_INT4, ROW), ceilings=(0.40, 0.60, 1.00)
    ),
    "INT4 g32 zeros": Variant(
        number_format=with_blocks(ASYMMETRIC_INT4, (32,)), ceilings=(1.10, 1.10, 1.90)
    ),
    "INT4 g128 zeros": Variant(
        number_format=with_blocks(ASYMMETRIC_INT4, (128,)),
        bench=True,
        ceilings=(0.75, 0.95, 1.00),
    ),
    "MXFP4": Variant(
        number_format=formats.MXFP4,
        trial=True,
        bench=True,
        rows=(8, 16, 32, 64),
        experts=True,
        ceilings=(0.52, 0.80, 0.97),
    ),
    "NVFP4": Variant(
        number_format=formats.NVFP4,
        trial=True,
        bench=True,
        rows=(4, 8, 16, 32, 64),
        experts=True,
        ceilings=(0.88, 1.15, 1.52),
        decode_ceilings=(1.00, 1.00, 1.13),
    ),
}


def abstract_weight(number_format: Format, shape: tuple[int, ...]) -> QuantizedTensor:
    """A weight of a format whose codes and parameters are `jax.ShapeDtypeStruct`.

    Args:
      number_format: one of `formats.FORMATS`, or made like one.
      shape: of the weight.

    Returns:
      A `QuantizedTensor` that `to_resident` makes an abstract `ResidentTensor` of.

    Example:
      >>> import jentropy
      >>> from jentropy.formats import INT4_GROUP
      >>> from jentropy.pallas_kernels import abstract_weight
      >>> w = jentropy.to_resident(abstract_weight(INT4_GROUP, (14336, 4096)), backend="tpu")
      >>> w.shape, round(w.bits_per_weight, 3)
      ((14336, 4096), 4.125)
    """
    codes = code_arrays(number_format, shape)
    return QuantizedTensor(number_format=number_format, codes=codes)


def weight_of(number_format: Format, values: jax.Array) -> Any:
    """What `to_resident` takes for weights in a format: quantised, or dense ones if it is plain."""
    if not number_format.parameters:
        return values.astype(number_format.element.dtype)
    codes = formats.quantize(values, number_format)
    return QuantizedTensor(number_format=number_format, codes=codes)
