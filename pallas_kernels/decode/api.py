"""Resident weights to dense arrays, on any backend.

To add a backend: a module here with `dense(weight, dtype, interpret)` for a single matrix as its
layout has it, and a line in `KERNELS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, Shaped

from jentropy import modes
from jentropy.pallas_kernels.resident import ResidentTensor, expect_weight

# Modules of backends, imported where one is used first; "reference" is plain JAX.
KERNELS = {"tpu": ".tpu", "gpu": ".gpu"}


def _kernel(backend: str) -> Callable[..., Array]:
    return importlib.import_module(KERNELS[backend], __package__).dense


def decode(
    w: ResidentTensor | Array | np.ndarray, dtype: Any = None, interpret: Any = False
) -> Shaped[Array, "*shape"]:
    """The dense weight, bit for bit: NaN payloads, -0 and subnormals included.

    Args:
      w: a resident weight; a dense array is returned as it is, in `dtype` if that is given.
      dtype: of the result: bfloat16 or float32. None: `w.dtype`, which is that of the codes, or
        bfloat16 where they have scales. Numbers are computed in float32 and rounded once.
      interpret: runs Pallas kernels in interpret mode, see `matmul`.

    Returns:
      An array of the weight's shape.

    Example:
      >>> import jax.numpy as jnp, jentropy
      >>> dense = jnp.arange(32, dtype=jnp.bfloat16).reshape(2, 16)
      >>> bool((jentropy.decode(jentropy.to_resident(dense)) == dense).all())
      True
    """
    expect_weight(w)
    if not isinstance(w, ResidentTensor):
        return jnp.asarray(w, dtype)
    dtype = jnp.dtype(w.dtype if dtype is None else dtype)
    return modes.automatic(lambda w: _dense(w, dtype, interpret), w, out=PartitionSpec)


@modes.standard
def _dense(w: ResidentTensor, dtype: np.dtype, interpret: Any) -> Shaped[Array, "*shape"]:
    if w.backend not in KERNELS:
        return w.module.decode(w.own(), dtype)
    if w.stack:
        return jax.lax.map(lambda i: _dense(w[i], dtype, interpret), jnp.arange(w.stack[0]))
    matrix = _kernel(w.backend)(w, dtype, interpret=interpret)
    return matrix.T if w.turned else matrix


@modes.standard
def take_rows(
    w: ResidentTensor | Array | np.ndarray,
    ids: Int[Array | np.ndarray, "*batch"],
    dtype: Any = None,
) -> Shaped[Array, "*batch columns"]:
    """Rows `ids` of a matrix; of a resident one only those rows are decoded.

    Ids outside the matrix are clipped to it, as `jnp.take(mode="clip")` does.

    Args:
      dtype: of the result, as of `decode`.
    """
    expect_weight(w)
    dtype = jnp.dtype(w.dtype if dtype is None else dtype)
    if not isinstance(w, ResidentTensor):
        taken = lambda w, ids: jnp.take(w, ids, axis=0, mode="clip").astype(dtype)  # noqa: E731
    else:
        taken = lambda w, ids: w.module.take_rows(w.own(), ids, dtype)  # noqa: E731
    return modes.automatic(taken, w, ids, out=lambda: modes.spec_of(ids))
