"""Dense arrays from TPU layouts by Pallas kernels, at the speed of memory.

A layout's kernel is `dense(weight, dtype, interpret)` of its file here: the packed matrix, padded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Shaped

from jentropy.pallas_kernels.compiling import interpret_params
from jentropy.pallas_kernels.resident import ResidentTensor

from . import tpu_scaled, tpu_window12

KERNELS: dict[str, Callable[..., Array]] = {
    "tpu_window12": tpu_window12.dense,
    "tpu_scaled": tpu_scaled.dense,
}


def dense(
    weight: ResidentTensor, dtype: Any, *, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """A single matrix as its layout has it: summed over its rows."""
    rows, columns = weight.module.extent(weight)
    kernel = KERNELS[weight.layout]
    return kernel(weight, dtype, interpret=interpret_params(interpret))[:rows, :columns]
