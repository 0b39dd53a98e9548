"""Products with resident weights, and the numbers and rows in them, on any backend.

To add a backend: a layout of its name with `kernels`, what its devices are called and differ in to
`targets`, its name to `layouts.BACKENDS`. `fused` multiplies and decodes with the kernels of any
layout, `reference` is what all are held to.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from jentropy import modes
from jentropy.containers import decompress, is_compressed
from jentropy.containers.trees import leaf_name
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import RAW, QuantizedTensor, format_of_dtype

from . import fused, reference, sharded
from .decoding import decode_part, decode_tensor
from .dense_layer import DenseLayer
from .fused import Product
from .resident import ResidentTensor, expect_weight
from .resident_array import ResidentArray
from .sharded import ShardedTensor

Weight = ResidentTensor | ShardedTensor | Array | np.ndarray


def matmul(
    x: Float[Array | np.ndarray, "*batch K"],
    w: Weight,
    transpose_w: bool = False,
    backend: str | None = None,
    out_dtype: Any = None,
    interpret: Any = False,
    precision: Any = None,
) -> Float[Array, "*batch N"]:
    """x @ w from the compressed bytes of w, accumulated in float32.

    On TPU and GPU, bfloat16 x is exact; float32 x is rounded to bfloat16 first, as XLA's own
    product does on TPU, unless `precision` asks for more. The reference backend always computes in
    float32.

    On TPU, window12 multiplies x by a power of two before, and the result by another after: a BF16
    weight is exact while |x| < 2^73 and |x w| > 2^-71, about; on GPU it is as in the dense product.
    On both x must be finite. Products of other formats are exact from |x w| = 2^-120 on. NaN and
    Inf in w come out as from the dense product.

    For many rows of x (`tpu.crossover`, and `fused_rows` of GPUs), and where products sum over the
    other axis than `to_resident` laid the weight out for, the weight is decoded to a dense array
    first. For many rows that is bfloat16, which rounds weights whose scales are no powers of two.

    Args:
      x: activations, any leading dimensions.
      w: [K, N], resident or dense, or over a mesh, each device multiplying by its part; with
        `transpose_w` stored [N, K], as in checkpoints. In a loop over stacked layers take it as
        `stack[i]`, which copies nothing.
      transpose_w: multiplies by the transpose of w.
      backend: None takes the backend of w's layout; another one's name raises.
      out_dtype: dtype of the result, that of x by default.
      interpret: runs Pallas kernels in interpret mode, which works on any device: True for TPU's
        memory and copies, "hlo" for plain operations, or `pltpu.InterpretParams`; for GPU kernels
        True or `InterpretGPUParams`. The reference backend has none.
        Under a transfer guard of the whole process take "hlo": True calls back in threads of JAX's
        own, which such a guard holds too.
      precision: "highest" (or `jax.lax.Precision.HIGHEST`) keeps all bits of float32 x: three
        products with bfloat16 parts of it, one pass over w. None: the default of the backend.

    Returns:
      y[*batch, N]. Differentiable in x; w has no gradient.

    Raises:
      InputError: shapes that do not fit; a `CompressedTensor`, which `to_resident` lays out first.
      UnsupportedError: a backend that cannot read w's layout.

    Example:
      >>> import jax.numpy as jnp, jentropy
      >>> w = jentropy.to_resident(jnp.full((16, 32), 0.5, jnp.bfloat16))
      >>> jentropy.matmul(jnp.ones((2, 16)), w).shape
      (2, 32)
    """
    expect(w)
    expect_floats(x)
    if len(w.shape) != 2:
        raise InputError("weight of a matmul", expected="two dimensions", found=list(w.shape))
    inner = w.shape[-1 if transpose_w else 0]
    if x.ndim < 1 or x.shape[-1] != inner:
        raise InputError(
            "last dimension of x",
            expected=f"{inner} (w is {list(w.shape)}, transpose_w={transpose_w})",
            found=list(x.shape),
        )
    out_dtype = x.dtype if out_dtype is None else jnp.dtype(out_dtype)
    expect_backend(w, backend)
    options = {"transpose_w": transpose_w, "interpret": interpret, "precision": precision}

    def run(x: Array, w: Weight, out_dtype: Any = out_dtype) -> Array:
        if isinstance(w, ShardedTensor):
            return sharded.matmul(x, w, run, transpose_w=transpose_w, out_dtype=out_dtype)
        return _matmul(x, w, out_dtype=out_dtype, **options)

    return modes.automatic(run, x, w, out=lambda: modes.spec_of(x, x.ndim - 1))


def expect_backend(w: Weight | DenseLayer, backend: str | None) -> None:
    """Raises UnsupportedError for another backend than that of a weight's layout."""
    if not isinstance(w, ResidentTensor | ShardedTensor):
        if backend not in (None, "reference"):
            raise UnsupportedError(
                f"backend {backend!r} for a dense weight", expected="reference", found=backend
            )
    elif backend not in (None, w.backend):
        raise UnsupportedError(
            "backend of a resident weight",
            expected=f"{w.backend!r}, the backend of its layout",
            found=repr(backend),
            hint="call to_resident with that backend",
        )


def is_full(precision: Any) -> bool:
    """Whether a product is to keep all bits of x."""
    try:
        return jax.lax.Precision(precision or "default") == jax.lax.Precision.HIGHEST
    except ValueError as error:
        raise InputError(
            "precision",
            expected="None, a jax.lax.Precision or its name",
            found=f"{precision!r:.60}",
        ) from error


def expect_floats(x: Any) -> None:
    """Raises InputError unless x may be multiplied: in its dtype, integers' results were cut."""
    if not isinstance(x, jax.Array | np.ndarray) or not jnp.issubdtype(x.dtype, jnp.floating):
        found = getattr(x, "dtype", type(x).__name__)
        raise InputError("x", expected="an array of floating-point numbers", found=found)


def expect(w: Any) -> None:
    """Raises InputError unless kernels can read a weight, or its parts over a mesh."""
    expect_weight(w.parts if isinstance(w, ShardedTensor) else w)


@modes.standard
def _matmul(
    x: Float[Array | np.ndarray, "*batch K"],
    w: ResidentTensor | Array | np.ndarray,
    *,
    transpose_w: bool,
    out_dtype: Any,
    interpret: Any,
    precision: Any,
) -> Float[Array, "*batch N"]:
    full_precision = is_full(precision)
    if not isinstance(w, ResidentTensor):
        return reference.dense_matmul(x, w, transpose_w=transpose_w, out_dtype=out_dtype)
    if not w.record.has_kernels:
        return reference.matmul(x, w, transpose_w=transpose_w, out_dtype=out_dtype)
    x = x.astype(fused.dtype_of(x))
    product = Product(
        transpose_w=transpose_w,
        x_dtype=x.dtype,
        out_dtype=jnp.dtype(out_dtype),
        full_precision=full_precision,
        interpret=interpret,
    )
    y = fused.multiply(x.reshape(-1, x.shape[-1]), w, product)
    return y.reshape(*x.shape[:-1], w.matrix[0 if transpose_w else 1])


def decode(w: Any, dtype: Any = None, interpret: Any = False) -> Any:
    """The dense weight, bit for bit: NaN payloads, -0 and subnormals included.

    Args:
      w: a resident weight; or a pytree, of which a Flax module or its state are some, with weights
        that are resident, archived (`CompressedTensor`) or quantised. A dense array is returned as
        it is, in `dtype` if that is given; other leaves of a tree stay.
      dtype: of decoded weights: bfloat16 or float32. None: `w.dtype`, which is that of the codes,
        or bfloat16 where they have scales. Numbers are computed in float32 and rounded once.
      interpret: runs Pallas kernels in interpret mode, see `matmul`.

    Returns:
      An array of the weight's shape, or the tree of them.

    Raises:
      InputError: a weight without data, or what is neither a weight nor a tree of some.

    Example:
      >>> import jax.numpy as jnp, jentropy
      >>> dense = jnp.arange(32, dtype=jnp.bfloat16).reshape(2, 16)
      >>> tree = {"w": jentropy.to_resident(dense), "z": jentropy.compress(dense), "n": 3}
      >>> [bool((one == dense).all()) for one in jentropy.decode([tree["w"], tree["z"]])]
      [True, True]
    """
    if isinstance(w, jax.Array | np.ndarray):
        return jnp.asarray(w, dtype)

    def one(path: tuple, leaf: Any) -> Any:
        try:
            return _decoded(leaf, dtype, interpret)
        except InputError as error:
            raise error.at(tensor=leaf_name(path) or None) from error

    return jax.tree_util.tree_map_with_path(one, w, is_leaf=_is_weight)


def _is_weight(node: Any) -> bool:
    resident = isinstance(node, ResidentArray | ResidentTensor | ShardedTensor | QuantizedTensor)
    return resident or is_compressed(node)


def _decoded(leaf: Any, dtype: Any, interpret: Any) -> Any:
    """A leaf of a tree, decoded if it is a weight."""
    if isinstance(leaf, ResidentArray):
        return (leaf if dtype is None else leaf.astype(dtype)).decoded(interpret)
    if isinstance(leaf, ResidentTensor):
        return decode_tensor(leaf, dtype, interpret)
    if isinstance(leaf, ShardedTensor):
        return modes.automatic(partial(_parts_decoded, dtype, interpret), leaf, out=PartitionSpec)
    if isinstance(leaf, QuantizedTensor):
        codes = decompress(leaf.codes)
        numbers = jnp.bfloat16 if dtype is None else dtype
        return jnp.asarray(replace(leaf, codes=codes).dequantize(numbers))
    if is_compressed(leaf):
        values = decompress(leaf)
        is_weight = format_of_dtype(leaf.dtype) != RAW and dtype is not None
        return jnp.asarray(values, dtype) if is_weight else values
    if isinstance(leaf, jax.ShapeDtypeStruct):
        expect_weight(leaf)
    return leaf


def _parts_decoded(dtype: Any, interpret: Any, w: ShardedTensor) -> Array:
    numbers = jnp.dtype(w.dtype if dtype is None else dtype)
    return sharded.decode(
        w,
        lambda part: (
            decode_part(part, numbers, interpret)
            if isinstance(part, ResidentTensor)
            else part.astype(numbers)
        ),
    )


@modes.standard
def take_rows(
    w: Weight,
    ids: Int[Array | np.ndarray, "*batch"],
    dtype: Any = None,
) -> Shaped[Array, "*batch columns"]:
    """Rows `ids` of a matrix; of a resident one only those rows are decoded.

    Ids outside the matrix are clipped to it, as `jnp.take(mode="clip")` does.

    Args:
      w: [rows, columns], resident or dense.
      ids: row numbers, of any shape.
      dtype: of the result, as of `decode`.

    Returns:
      Rows [*batch, columns].

    Raises:
      InputError: what is no weight that kernels read.

    Example:
      >>> import jax.numpy as jnp, jentropy
      >>> table = jentropy.to_resident(jnp.ones((64, 128), jnp.bfloat16))
      >>> jentropy.pallas_kernels.take_rows(table, jnp.array([[3, 5]])).shape
      (1, 2, 128)
    """
    expect(w)
    dtype = jnp.dtype(w.dtype if dtype is None else dtype)

    def taken(w: Any, ids: Any, dtype: Any = dtype) -> Array:
        if isinstance(w, ShardedTensor):
            return sharded.take_rows(w, ids, dtype, taken)
        if isinstance(w, ResidentTensor):
            return reference.take_rows(w, ids, dtype)
        return jnp.take(w, ids, axis=0, mode="clip").astype(dtype)

    return modes.automatic(taken, w, ids, out=lambda: modes.spec_of(ids))
