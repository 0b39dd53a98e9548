"""One weight, packed in the layout that suits a backend and saves memory."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jentropy import formats, modes
from jentropy.containers.trees import as_array, decompress_where, on_accelerator
from jentropy.errors import UnsupportedError
from jentropy.formats import QuantizedTensor, is_quantized

from .layouts import LAYOUTS, Matrices
from .resident import ResidentTensor

# Bytes: a kernel's layout is kept to here, though its padding cost more than it saves.
SMALL = 16 << 20


@modes.detached
def lay_out(weight: Any, backend: str, reduce_axis: int = -1) -> ResidentTensor | jax.Array:
    """One array or quantised weight in a backend's layout, or dense where that is as small."""
    if is_quantized(weight):
        if not weight.number_format.parameters:
            element, code = weight.number_format.element, weight.codes["code"]
            return lay_out(element.values(as_array(code)), backend, reduce_axis)
        codes = decompress_where(dict(weight.codes), on_accelerator)
        quantized = QuantizedTensor(number_format=weight.number_format, codes=codes)
        dense = None
    else:
        if jax.dtypes.canonicalize_dtype(weight.dtype) != weight.dtype:
            raise UnsupportedError(
                f"a resident tensor of {weight.dtype}",
                hint="JAX has 64 bits with jax_enable_x64 only",
            )
        dense = weight
        if formats.format_of_dtype(weight.dtype) == formats.RAW:
            return jnp.asarray(weight)
        quantized = QuantizedTensor(
            number_format=formats.plain_format(weight.dtype),
            codes={"code": formats.codes_of(weight)},
        )
    if len(quantized.shape) < 2 or math.prod(quantized.shape) == 0:
        return jnp.asarray(quantized.dequantize(jnp.bfloat16) if dense is None else dense)
    names = [name for name in LAYOUTS if LAYOUTS[name].BACKEND in (backend, "reference")]
    for name in sorted(names, key=lambda name: backend != LAYOUTS[name].BACKEND):
        resident = _pack(quantized, name, reduce_axis)
        if resident is not None and (
            dense is None
            or resident.nbytes < dense.nbytes
            or (resident.backend != "reference" and resident.nbytes < SMALL)
        ):
            return resident
    return jnp.asarray(dense)


def _pack(weight: QuantizedTensor, name: str, reduce_axis: int) -> ResidentTensor | None:
    """The weight in a layout; None where it cannot hold it."""
    layout = LAYOUTS[name]
    if not layout.holds(weight.number_format):
        return None
    matrices = Matrices.of(weight)
    turned = layout.REDUCES not in (None, reduce_axis)
    packed = layout.pack(matrices.turned() if turned else matrices)
    if packed is None:
        return None
    arrays, options = packed
    return ResidentTensor(
        arrays=arrays,
        options=tuple(sorted(options.items())),
        layout=name,
        number_format=matrices.number_format,
        logical=matrices.matrix,
        turned=turned,
    )
