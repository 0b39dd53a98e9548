"""The matmul that reads compressed weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jentropy.errors import InputError, UnsupportedError
from jentropy.pallas_kernels.resident import ResidentTensor

from . import reference

BACKENDS = {"reference": reference}


def matmul(
    x: Float[Array, "*batch K"],
    w: ResidentTensor | jax.Array,
    transpose_w: bool = False,
    backend: str | None = None,
    out_dtype: jnp.dtype | None = None,
    interpret: bool = False,
) -> Float[Array, "*batch N"]:
    """x @ w from the compressed bytes of w, accumulated in float32.

    Args:
      x: activations, any leading dimensions.
      w: [K, N], resident or dense; with `transpose_w` stored [N, K], as in checkpoints.
      transpose_w: multiplies by the transpose of w.
      backend: None takes the backend of w's layout; another one's name raises.
      out_dtype: dtype of the result, that of x by default.
      interpret: runs Pallas kernels in interpret mode; the reference backend has none.

    Returns:
      y[*batch, N]. NaN and Inf come out as from the dense product.

    Raises:
      InputError: shapes that do not fit.
      UnsupportedError: a backend that cannot read w's layout.

    Example:
      >>> import jax.numpy as jnp, jentropy
      >>> w = jentropy.to_resident(jnp.full((16, 32), 0.5, jnp.bfloat16))
      >>> jentropy.matmul(jnp.ones((2, 16)), w).shape
      (2, 32)
    """
    del interpret  # for the Pallas backends; the reference is the same either way
    if len(w.shape) != 2:
        raise InputError("weight of a matmul", expected="two dimensions", found=list(w.shape))
    inner = w.shape[1 if transpose_w else 0]
    if x.ndim < 1 or x.shape[-1] != inner:
        raise InputError(
            "last dimension of x",
            expected=f"{inner} (w is {list(w.shape)}, transpose_w={transpose_w})",
            found=list(x.shape),
        )
    out_dtype = x.dtype if out_dtype is None else jnp.dtype(out_dtype)
    if not isinstance(w, ResidentTensor):
        if backend not in (None, "reference"):
            raise UnsupportedError(
                f"backend {backend!r} for a dense weight", expected="reference", found=backend
            )
        return reference.dense_matmul(x, w, transpose_w=transpose_w, out_dtype=out_dtype)
    if backend not in (None, w.backend):
        raise UnsupportedError(
            "backend of a resident weight",
            expected=f"{w.backend!r}, the backend of its layout",
            found=repr(backend),
            hint="call to_resident with that backend",
        )
    return BACKENDS[w.backend].matmul(x, w, transpose_w=transpose_w, out_dtype=out_dtype)
