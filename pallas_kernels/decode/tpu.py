"""Dense arrays from TPU layouts by Pallas kernels, at the speed of memory.

A layout's kernel is in its file here: `dense(weight, dtype, interpret)` gives the packed matrix,
padded; a step of its grid decodes `tile(weight)`; the compiler knows it as NAME.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from jaxtyping import Array, Shaped

from jentropy.pallas_kernels.compiling import interpret_params
from jentropy.pallas_kernels.resident import ResidentTensor

from . import tpu_scaled, tpu_window12

KERNELS: dict[str, ModuleType] = {"tpu_window12": tpu_window12, "tpu_scaled": tpu_scaled}


def dense(
    weight: ResidentTensor, dtype: Any, *, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """A single matrix as its layout has it: summed over its rows."""
    rows, columns = weight.module.extent(weight)
    kernel = KERNELS[weight.layout]
    return kernel.dense(weight, dtype, interpret=interpret_params(interpret))[:rows, :columns]
