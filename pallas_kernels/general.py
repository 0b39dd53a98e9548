"""Products over any axes from compressed bytes: `lax.dot_general` and `einsum`.

They are what XLA computes on the decoded array, bit for bit, unless the array's layout has kernels
and these compute the same product: over all rows or all columns of one matrix. Its sums are in
float32, and float32 activations are rounded to bfloat16 unless `precision` says "highest", as XLA
does on TPU by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from . import api
from .resident_array import ResidentArray

Axes = tuple[Sequence[int], Sequence[int]]

HIGHEST = ("highest", "float32", jax.lax.Precision.HIGHEST)
DEFAULT = (None, "default", "fastest", "bfloat16", jax.lax.Precision.DEFAULT)


def dot_general(
    x: Shaped[Array, "*x"],
    w: Any,
    dimension_numbers: tuple[Axes, Axes],
    precision: Any = None,
    *,
    dense: Callable[..., Any] = jax.lax.dot_general,
    **options: Any,
) -> Shaped[Array, "*y"]:
    """`jax.lax.dot_general` with an array that may be resident.

    Args:
      x: activations.
      w: an array, resident or not.
      dimension_numbers, precision: as of `jax.lax.dot_general`.
      dense: what multiplies dense arrays; kernels stand in for `jax.lax.dot_general` only.
      options: more that `dense` takes.

    Returns:
      The product. Differentiable in x; a resident array has no gradient.

    Example:
      >>> from jentropy.pallas_kernels.folding import resident_array
      >>> w = resident_array(jnp.ones((64, 8, 16)), [0], [1, 2], "reference")
      >>> dot_general(jnp.ones((2, 64)), w, (((1,), (0,)), ((), ()))).shape
      (2, 8, 16)
    """
    if isinstance(w, ResidentArray):
        (of_x, of_w), batch = dimension_numbers
        if dense is jax.lax.dot_general and not any(map(len, batch)):
            y = fused(x, w, tuple(of_x), tuple(of_w), precision=precision, **options)
            if y is not None:
                return y
        w = decoded(w)
    return dense(x, w, dimension_numbers, precision=precision, **options)


def einsum(
    equation: str,
    x: Shaped[Array, "*x"],
    w: Any,
    *,
    dense: Callable[..., Any] = jnp.einsum,
    **options: Any,
) -> Shaped[Array, "*y"]:
    """`jnp.einsum(equation, x, w)` with an array that may be resident.

    Args:
      equation: two operands and what becomes of them.
      x: activations.
      w: an array, resident or not.
      dense: what computes it of dense arrays; kernels stand in for `jnp.einsum` only.
      options: more that `dense` takes.

    Returns:
      What `jnp.einsum` gives.

    Example:
      >>> from jentropy.pallas_kernels.folding import resident_array
      >>> w = resident_array(jnp.ones((8, 64, 16)), [1], [0, 2], "reference")
      >>> einsum("...d,hdk->...hk", jnp.ones((2, 64)), w).shape
      (2, 8, 16)
    """
    if isinstance(w, ResidentArray):
        terms = parsed(equation)
        if dense is jnp.einsum and terms is not None and w.weight.stack == ():
            y = _fused_einsum(x, w, *terms, **options)
            if y is not None:
                return y
        w = decoded(w)
    return dense(equation, x, w, **options)


def decoded(w: ResidentArray) -> Shaped[Array, "*shape"]:
    """The dense array, which XLA does not fuse into what uses it: sums keep their order."""
    return jax.lax.optimization_barrier(w.decoded())


def fused(
    x: Shaped[Array, "*x"],
    w: ResidentArray,
    of_x: tuple[int, ...],
    of_w: tuple[int, ...],
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    **others: Any,
) -> Shaped[Array, "*y"] | None:
    """A product summed over axes of x and of w, by the kernels of w's layout.

    Args:
      x: activations of w's dtype.
      w: the array.
      of_x, of_w: axes that are summed over, in the same order.
      precision, preferred_element_type, out_sharding, others: as of `jax.lax.dot_general`.

    Returns:
      The product: axes of x that are left, then those of w; None where kernels do not compute it.

    Example:
      >>> from jentropy.pallas_kernels.folding import resident_array
      >>> w = resident_array(jnp.ones((64, 16)), [0], [1], "reference")
      >>> fused(jnp.ones((2, 64)), w, (1,), (0,)) is None  # plain JAX multiplies
      True
    """
    if precision is None:
        precision = jax.config.values["jax_default_matmul_precision"]
    over_rows = set(of_w) == set(w.rows)
    if (
        not w.weight.record.has_kernels
        or w.weight.stack
        or not (over_rows or set(of_w) == set(w.columns))
        or x.dtype != w.dtype
        or x.dtype not in (jnp.bfloat16, jnp.float32)
        or precision not in DEFAULT + HIGHEST
        or out_sharding is not None
        or others
    ):
        return None
    inner, outer = (w.rows, w.columns) if over_rows else (w.columns, w.rows)
    summed = [of_x[of_w.index(axis)] % x.ndim for axis in inner]
    kept = [axis for axis in range(x.ndim) if axis not in summed]
    flat = x.transpose(*kept, *summed).reshape(*(x.shape[axis] for axis in kept), -1)
    y = api.matmul(
        flat,
        w.weight,
        transpose_w=not over_rows,
        out_dtype=preferred_element_type,
        precision="highest" if precision in HIGHEST else None,
    )
    y = y.reshape(*y.shape[:-1], *(w.sizes[axis] for axis in outer))
    order = sorted(range(len(outer)), key=lambda i: outer[i])
    return y.transpose(*range(len(kept)), *(len(kept) + i for i in order))


def parsed(equation: str) -> tuple[list[str], str, list[str]] | None:
    """Axes of x, of w and of the result, "." for an ellipsis; None unless it is one product.

    Every axis of w is summed over or given; the others of x are all given.

    Example:
      >>> parsed("...d,hdk->...hk"), parsed("ebd,edf->ebf")
      ((['.', 'd'], 'hdk', ['.', 'h', 'k']), None)
    """
    operands, _, result = equation.replace(" ", "").replace("...", ".").partition("->")
    of_x, _, of_w = operands.partition(",")
    all_given = set(of_x) - set(of_w) == set(result) - set(of_w)
    in_one = all((axis in of_x) != (axis in result) for axis in of_w)
    once = all(len(set(term)) == len(term) for term in (of_x, of_w, result))
    if "." in of_w or not (all_given and in_one and once):
        return None
    return list(of_x), of_w, list(result)


def _fused_einsum(
    x: Array, w: ResidentArray, of_x: list[str], of_w: str, result: list[str], **options: Any
) -> Array | None:
    if "." in of_x:  # as many axes as there are more
        at, more = of_x.index("."), [str(n) for n in range(x.ndim - len(of_x) + 1)]
        of_x[at : at + 1] = more
        at = result.index(".")
        result[at : at + 1] = more
    summed = [axis for axis in of_w if axis in of_x]
    where = tuple(map(of_x.index, summed)), tuple(map(of_w.index, summed))
    y = fused(x, w, *where, **options)
    if y is None:
        return None
    axes = [axis for axis in (*of_x, *of_w) if axis not in summed]
    return y.transpose(*map(axes.index, result))
