"""One weight, packed in the layout that suits a backend and saves memory."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp

from jentropy import formats, modes
from jentropy.containers.trees import as_array, decompress_where, on_accelerator
from jentropy.errors import UnsupportedError
from jentropy.formats import QuantizedTensor

from .layouts import LAYOUTS
from .matrices import Matrices, computed, is_abstract, on_device
from .resident import ResidentTensor

logger = logging.getLogger(__name__)

WITHOUT_LAYOUT = ("float16", "float32")
# Bytes: a kernel's layout is kept to here, though its padding cost more than it saves.
SMALL = 16 << 20


@modes.detached
def lay_out(
    weight: Any, backend: str, reduce_axis: int = -1
) -> ResidentTensor | jax.Array | jax.ShapeDtypeStruct:
    """One array or quantised weight in a backend's layout, or dense where that is as small.

    Of one without data (`is_abstract`) what comes out has none either.

    Args:
      weight: an array of any dtype and shape, or a `QuantizedTensor`.
      backend: one of `layouts.BACKENDS`, whose own layouts come before the reference's.
      reduce_axis: the axis that products sum over, -1 or -2, see `to_resident`.

    Returns:
      The weight in the first layout that holds it; the dense one where none makes it smaller.

    Raises:
      UnsupportedError: a dtype of 64 bits, which JAX does not have by default.

    Example:
      >>> import jax.numpy as jnp
      >>> lay_out(jnp.ones((64, 128), jnp.bfloat16), "reference").layout
      'reference_window12'
    """
    if isinstance(weight, QuantizedTensor):
        codes, abstract = weight.in_memory().codes, is_abstract(weight)
        if weight.number_format.is_plain:
            code = codes["code"] if abstract else as_array(weight.codes["code"])
            values = computed(weight.number_format.element.values, code)
            return lay_out(values, backend, reduce_axis)
        if not abstract:
            codes = {n: _whole_rows(c) for n, c in decompress_where(codes, on_accelerator).items()}
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
            return _array(weight)
        quantized = QuantizedTensor(
            number_format=formats.plain_format(weight.dtype),
            codes={"code": computed(formats.codes_of, weight)},
        )
    if len(quantized.shape) < 2 or math.prod(quantized.shape) == 0:
        if dense is not None:
            return _array(dense)
        return computed(lambda weight: jnp.asarray(weight.dequantize(jnp.bfloat16)), quantized)
    names = [name for name in LAYOUTS if LAYOUTS[name].backend in (backend, "reference")]
    for name in sorted(names, key=lambda name: backend != LAYOUTS[name].backend):
        resident = _pack(quantized, name, reduce_axis)
        if resident is not None and (
            dense is None
            or resident.nbytes < dense.size * dense.dtype.itemsize
            or (resident.backend != "reference" and resident.nbytes < SMALL)
        ):
            return resident
    if dense is not None and str(dense.dtype) in WITHOUT_LAYOUT:
        _log(str(dense.dtype))
    return _array(dense)


def _whole_rows(array: Any) -> Any:
    """Codes on a mesh with Explicit axes, split by their first axis alone: layouts cut the rest."""
    if modes.explicit_mesh(array) is None or not any(modes.spec_of(array)[1:]):
        return array
    rows = jax.sharding.PartitionSpec(*modes.spec_of(array)[:1])
    return jax.device_put(array, jax.sharding.NamedSharding(array.sharding.mesh, rows))


@functools.cache
def _log(dtype: str) -> None:
    logger.warning(
        "%s matrices rest dense, at their full size: no layout holds them. Cast them to bfloat16 "
        "where its 8 bits of mantissa suffice, and they take 12 bits a weight",
        dtype,
    )


def _array(array: Any) -> Any:
    return array if is_abstract(array) else on_device(array)


def _pack(weight: QuantizedTensor, name: str, reduce_axis: int) -> ResidentTensor | None:
    """The weight in a layout; None where it cannot hold it."""
    layout = LAYOUTS[name]
    if not layout.takes(weight.number_format):
        return None
    matrices, transposed = Matrices.of(weight), layout.reduces not in (None, reduce_axis)
    make = layout.shapes if is_abstract(weight) else layout.pack
    packed = make(matrices.transposed() if transposed else matrices)
    if packed is None:
        return None
    arrays, options = packed
    return ResidentTensor(
        arrays=arrays,
        options=tuple(sorted(options.items())),
        layout=name,
        number_format=matrices.number_format,
        logical=matrices.matrix,
        transposed=transposed,
    )
