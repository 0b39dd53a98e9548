"""Trees of archived, quantised and dense weights to resident ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jentropy import containers, modes
from jentropy.containers.trees import (
    as_array,
    decompress_where,
    is_key,
    is_python,
    leaf_name,
    on_accelerator,
)
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import QuantizedTensor

from .backends import default_for
from .folding import resident_array
from .laying_out import lay_out
from .layouts import BACKENDS
from .matrices import is_abstract
from .resident import ResidentTensor
from .resident_array import ResidentArray


def to_resident(
    packed: Any,
    backend: str | None = None,
    *,
    reduce_axis: int = -1,
    axes: tuple[int, int] = (1, 1),
) -> Any:
    """Decodes archived tensors on the device and lays them out for a backend's kernels.

    Matrices, and stacks of them, become `ResidentTensor`; vectors, scalars, and matrices that no
    layout makes smaller stay dense arrays of their dtype, every code kept. Among these are FP32 and
    FP16 matrices, which have no layout: a message in the log says so, once.

    Leaves without data, `jax.ShapeDtypeStruct` (`abstract_weight` makes quantised ones), become
    `ResidentTensor` of `jax.ShapeDtypeStruct`, at no cost: for `jax.jit(...).lower(...)` before
    there are weights. What depends on numbers (sizes of lists of escapes, of NaN and -0; on TPU
    `shift` and `inline` of window12's options) is that of Gaussian weights of deviation 0.02; for
    others a program may have to be compiled anew.

    =====================  ==========================  =====================  ====================
    format                 backend "reference"         backend "tpu"          backend "gpu"
    =====================  ==========================  =====================  ====================
    BF16                   window12: every code        window12: every code   window12: every code
    FP8 E4M3, E5M2; MXFP8  codes and scales            codes and scales       codes; scales as
                                                                              numbers
    INT8, INT4             codes, scales, zero points  codes; scales and      codes; scales and
                                                       zero points as numbers zero points as numbers
    MXFP4                  codes and scales            codes; scales of       codes; scales as
                                                       blocks that are no     numbers
                                                       zeros
    NVFP4                  codes and parameters        codes and scales;      codes; scales as
                                                       theirs as numbers      numbers
    GPTQ's act-order, all  codes and parameters        the reference layout   the reference layout
    others
    =====================  ==========================  =====================  ====================

    All of them decode to the same bits (`decode`). A format that the backend's kernels cannot hold
    (see the table; on TPU groups along the sum that are no power of two from 32 on; on GPU groups
    of other sizes than 32, 64 and multiples of 128, BF16 of which an eighth of 64 x 128 weights are
    escapes, and NaN, Inf and E8M0 scales that differ by 2^100 in a row) rests in the reference
    layout and multiplies there; `weight.backend` says so.

    Args:
      packed: a pytree whose leaves are `CompressedTensor`, arrays, `formats.QuantizedTensor` (its
        codes compressed or not), tensors of `open_checkpoint`, or weights without data.
      backend: "reference", "tpu" or "gpu"; None takes the one of the default device, where the
        kernels of the weight's layout pass a small trial, once a process.
      reduce_axis: the axis of each matrix that products sum over: -1 for [N, K] as in checkpoints
        (`transpose_w=True`), -2 for [K, N]. The other product works too, by way of dense tiles.
      axes: how many of a leaf's last axes are rows of one matrix, and how many after these are its
        columns; the axes before are a stack. A kernel [in, heads, head_dim] is one matrix with
        (1, 2), and `in` matrices with (1, 1). With others than (1, 1), leaves are numbers or
        archived, not quantised, and become `ResidentArray`, which keep their axes and multiply by
        `pallas_kernels.dot_general`.

    Returns:
      The same pytree, its leaves `ResidentTensor` or `jax.Array`, as which Python's numbers are
      taken; random keys, texts, and numbers that were archived as Python's stay as they are.

    Raises:
      UnsupportedError: an unknown backend; a dtype of 64 bits, which JAX does not have by default;
        inside of `jax.jit`, `jax.eval_shape` and the like.

    Example:
      >>> import jax, jax.numpy as jnp, jentropy
      >>> packed = jentropy.compress(jnp.ones((128, 512), jnp.bfloat16))
      >>> w = jentropy.to_resident(packed, backend="reference")
      >>> w.shape, round(w.bits_per_weight, 1)
      ((128, 512), 12.1)
      >>> abstract = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
      >>> jentropy.to_resident(abstract, backend="tpu").arrays["words"]
      ShapeDtypeStruct(shape=(3, 512, 4096), dtype=uint32)
    """
    if backend is not None and backend not in BACKENDS:
        raise UnsupportedError("backend", expected=" or ".join(BACKENDS), found=repr(backend))
    if reduce_axis not in (-1, -2):
        raise InputError("reduce_axis", expected="-1 or -2", found=reduce_axis)

    def is_leaf(node: Any) -> bool:
        return containers.is_compressed(node) or isinstance(node, QuantizedTensor)

    def convert(path: tuple, leaf: Any) -> Any:
        try:
            return _leaf_to_resident(leaf, backend, reduce_axis, axes)
        except InputError as error:
            raise error.at(tensor=leaf_name(path) or None) from error

    return jax.tree_util.tree_map_with_path(convert, packed, is_leaf=is_leaf)


@modes.detached
def _leaf_to_resident(
    leaf: Any, backend: str | None, reduce_axis: int, axes: tuple[int, int]
) -> ResidentTensor | ResidentArray | jax.Array | jax.ShapeDtypeStruct:
    if any(isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(leaf)):
        raise modes.traced(
            "call to_resident outside of them; for an abstract weight give it jax.ShapeDtypeStruct"
        )
    if type(leaf) in (bool, int, float, complex):  # as JAX takes Python's numbers
        return jnp.asarray(leaf)
    if isinstance(leaf, QuantizedTensor) and axes != (1, 1):
        raise UnsupportedError("axes of a quantised weight", expected=(1, 1), found=axes)
    if axes == (1, 1) and (isinstance(leaf, QuantizedTensor) or is_abstract(leaf)):
        return lay_out(leaf, backend or default_for(leaf), reduce_axis)
    values = decompress_where(leaf, on_accelerator) if containers.is_compressed(leaf) else leaf
    if is_python(values) or is_key(values):
        return values
    if not (isinstance(values, jax.Array) or is_abstract(values)):
        values = as_array(values)
    if axes != (1, 1) and len(values.shape) >= sum(axes):
        rows, columns = range(axes[0]), range(axes[0], sum(axes))
        summed, given = (rows, columns) if reduce_axis == -2 else (columns, rows)
        folded = resident_array(values, summed, given, backend)
        if folded is None:
            return values if is_abstract(values) else jnp.asarray(values)
        return folded
    return lay_out(values, backend or default_for(values), reduce_axis)
