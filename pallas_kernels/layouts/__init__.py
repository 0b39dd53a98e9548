"""Resident layouts: how compressed matrices lie in device memory. A file for each.

To add one: a module here with

    NAME, BACKEND       its key in `LAYOUTS`, and whose kernels read it
    REDUCES             the axis, -1 or -2, of what it packs that products sum over: `to_resident`
                        turns the matrix so that they do; None if that is all the same
    STACKED             one of its arrays, and the axes that this has for a single matrix
    COLUMNS, ROWS       axes of arrays that a mesh may split, by what runs along them
    holds(format)       whether it can hold matrices of a number format
    pack(matrices)      arrays and options, or None if these codes cannot be held
    abstract(matrices)  the same of `jax.ShapeDtypeStruct`, as of Gaussian weights: sizes only
    extent(weight)      rows and columns of what the arrays hold, as `pack` was given them
    decode(weight, dtype), take_rows(weight, ids, dtype)

and a line below, before others of its backend that hold the same formats. Layouts of a Pallas
backend also have what `decode_matmul` and `decode` say there.
"""

from types import ModuleType

from . import gpu_window12, reference_codes, reference_window12, tpu_scaled, tpu_window12
from .matrix import Matrices

LAYOUTS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (reference_window12, reference_codes, tpu_window12, tpu_scaled, gpu_window12)
}

__all__ = ["LAYOUTS", "Matrices"]
