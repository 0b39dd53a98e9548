"""Products of rows in groups, each with a matrix of its own: the experts of a layer.

A loop goes over tiles of rows that lie within one group, so that no more than one matrix is decoded
at a time, and none whose group is empty. Rows are dealt to tiles by arithmetic on the sizes of the
groups alone: dense and compressed weights are multiplied in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from jentropy import modes
from jentropy.errors import InputError

from . import fused, reference, sharded
from .api import Weight, expect, expect_backend, expect_floats, is_full
from .dense_layer import DenseLayer, part_of
from .fused import Product
from .resident import ResidentTensor
from .sharded import ShardedTensor

# Rows of a tile. A product of fewer rows than the least costs what the decoding of its matrix does;
# with more than the most, decoding it is small beside the product.
LEAST, MOST = 8, 256


def grouped_matmul(
    x: Float[Array | np.ndarray, "M K"],
    w: Weight | DenseLayer,
    group_sizes: Int[Array | np.ndarray, " E"],
    transpose_w: bool = False,
    backend: str | None = None,
    out_dtype: Any = None,
    interpret: Any = False,
    precision: Any = None,
) -> Float[Array, "M N"]:
    """x @ w with a matrix of w for every group of rows, from the compressed bytes of w.

    The first `group_sizes[0]` rows of x are multiplied by w[0], the next `group_sizes[1]` by w[1],
    and so on, as by `jax.lax.ragged_dot`; groups may be empty. Rows after the last group give 0,
    whatever they hold. The sum of the sizes is at most M; rows that are not there are left out.

    Matrices of empty groups are not read. On the reference backend one matrix is decoded at a time;
    its product has the bits of the product with a dense w. All else is as of `matmul`.

    Args:
      x: activations, rows sorted by group.
      w: [E, K, N], resident or dense; with `transpose_w` stored [E, N, K], as in checkpoints. Of
        stacks of layers take `stack.layer(i)`, or `pallas_kernels.layer_of(stack, i)` of a dense
        one, which copy nothing.
      group_sizes: rows of each group.
      transpose_w: multiplies by the transposes of w.
      backend, out_dtype, interpret, precision: as of `matmul`.

    Returns:
      y[M, N]. Differentiable in x, and in a dense w.

    Raises:
      InputError: shapes that do not fit; a `CompressedTensor`, which `to_resident` lays out first.
      UnsupportedError: a backend that cannot read w's layout.

    Example:
      >>> import jax.numpy as jnp, jentropy
      >>> experts = jentropy.to_resident(jnp.ones((3, 64, 32), jnp.bfloat16))
      >>> y = jentropy.grouped_matmul(jnp.ones((5, 64)), experts, jnp.array([2, 0, 1]))
      >>> y[:, 0].tolist()
      [64.0, 64.0, 64.0, 0.0, 0.0]

    References:
      Gale et al., MegaBlocks, arXiv 2211.15841.
    """
    if not isinstance(w, DenseLayer):
        expect(w)
    expect_floats(x)
    if len(w.shape) != 3:
        raise InputError("weights of groups", expected="three dimensions", found=list(w.shape))
    inner = w.shape[-1 if transpose_w else -2]
    for what, array, rank, size in (
        ("x", x, 2, inner),
        ("group_sizes", group_sizes, 1, w.shape[0]),
    ):
        if not isinstance(array, jax.Array | np.ndarray):
            raise InputError(what, expected="an array", found=type(array).__name__)
        if array.ndim != rank or array.shape[-1] != size:
            raise InputError(
                what,
                expected=f"{size} in the last of {rank} dimensions "
                f"(w is {list(w.shape)}, transpose_w={transpose_w})",
                found=list(array.shape),
            )
    if not jnp.issubdtype(group_sizes.dtype, jnp.integer):
        raise InputError("group_sizes", expected="integers", found=group_sizes.dtype)
    expect_backend(w, backend)
    product = Product(
        transpose_w=transpose_w,
        x_dtype=np.dtype(x.dtype),
        out_dtype=np.dtype(x.dtype if out_dtype is None else jnp.dtype(out_dtype)),
        full_precision=is_full(precision),
        interpret=interpret,
    )

    @modes.standard
    def run(x: Array, w: Any, group_sizes: Array) -> Array:
        w = jnp.asarray(w) if isinstance(w, np.ndarray) else w
        ends = jnp.minimum(jnp.cumsum(jnp.maximum(group_sizes, 0)), x.shape[0])
        return on_each(jnp.asarray(x), w, ends.astype(jnp.int32), product.out_dtype)

    def on_each(x: Array, w: Any, ends: Array, out_dtype: Any) -> Array:
        if not isinstance(w, ShardedTensor):
            return _multiply(x, w, ends, replace(product, out_dtype=np.dtype(out_dtype)))
        options = {"transpose_w": transpose_w, "out_dtype": out_dtype}
        return sharded.grouped_matmul(x, w, ends, on_each, **options)

    return modes.automatic(run, x, w, group_sizes, out=lambda: modes.spec_of(x, 1))


def on_groups(
    run: Callable[..., Array],
    x: Float[Array, "M K"],
    weights: Sequence[Any],
    group_sizes: Int[Array, " E"],
    *beside: Any,
) -> Float[Array, "M N"]:
    """run(x, weights, group_sizes, *beside): what rows become by several products with groups.

    Over a mesh whose devices have some matrices each, every device runs it with its own for their
    rows, and what all make of rows is added once.

    Args:
      run: treats rows apart; what it makes of rows of no group is not used.
      x: rows sorted by group, see `grouped_matmul`.
      weights: stacks with a matrix for each group, as `grouped_matmul` takes them.
      beside: pytrees of arrays that have an entry for each row of x.
    """
    if not sharded.split_by_matrices(weights):
        return run(x, weights, group_sizes, *beside)

    def own(x: Array, parts: Any, ends: Array, *beside: Any) -> Array:
        return run(x, parts, jnp.diff(ends, prepend=0), *beside)

    def over(x: Array, weights: Any, group_sizes: Array, beside: Any) -> Array:
        ends = jnp.cumsum(group_sizes, dtype=jnp.int32)
        return sharded.by_matrices(own, weights, x, ends, *beside)

    arguments = x, weights, group_sizes, beside
    return modes.automatic(over, *arguments, out=lambda: modes.spec_of(x, 1))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _multiply(x: Array, w: Any, ends: Int[Array, " E"], product: Product) -> Array:
    """The product; rows of group g are those from `ends[g - 1]` to `ends[g]`."""
    return _mapped(partial(_products, product=product))(x, w, ends)


def _forward(x: Array, w: Any, ends: Array, product: Product) -> tuple[Array, tuple]:
    return _multiply(x, w, ends, product), (x, w, ends)


def _backward(product: Product, saved: tuple, cotangent: Array) -> tuple[Array, Any, None]:
    x, w, ends = saved
    of_x = _multiply(cotangent, w, ends, product.transposed())
    if isinstance(w, ResidentTensor):
        return of_x, None, None
    pair = (cotangent, x) if product.transpose_w else (x, cotangent)
    of_w: Any = _mapped(_outer)(*pair, ends).astype(w.dtype)
    if isinstance(w, DenseLayer):
        of_w = DenseLayer(array=jnp.zeros_like(w.array).at[w.index].set(of_w), index=None)
    return of_x, of_w, None


_multiply.defvjp(_forward, _backward)


def _mapped(run: Callable[..., Array]) -> Callable[..., Array]:
    """run(*arguments), where `vmap` is a loop: no more than one matrix is decoded at a time."""
    call = jax.custom_batching.custom_vmap(run)

    @call.def_vmap
    def rule(size: int, batched: Any, *arguments: Any) -> tuple[Array, bool]:
        def one(i: Array) -> Array:
            take = lambda a, is_batched: a[i] if is_batched else a  # noqa: E731
            return call(*jax.tree.map(take, arguments, (*batched,)))

        return jax.lax.map(one, jnp.arange(size)), True

    return call


@modes.standard
def _products(x: Array, w: Any, ends: Int[Array, " E"], *, product: Product) -> Array:
    kernels = None
    if isinstance(w, ResidentTensor) and w.record.has_kernels:
        kernels, x = fused.kernels_of(w), x.astype(fused.dtype_of(x))
        direct = fused.summed(w, product) == w.record.reduces
        if kernels.grouped is not None and direct:
            y = kernels.grouped(x, w, jnp.diff(ends, prepend=0), product)
            if y is not None:
                return y
    options: dict[str, Any] = {"transpose_w": product.transpose_w, "out_dtype": product.out_dtype}

    def one(rows: Array, group: Array) -> Array:
        if kernels is not None:
            return fused.one_product(rows, w[group], replace(product, x_dtype=x.dtype))
        if isinstance(w, ResidentTensor):
            return reference.matmul(rows, w[group], **options)
        matrix = w[group] if isinstance(w, DenseLayer) else part_of(w, group)
        return reference.dense_matmul(rows, matrix, **options)

    def step(y: Array, group: Array, tile: _Tile) -> Array:
        return tile.put(y, one(tile.of(x), group))

    n = w.shape[-2 if product.transpose_w else -1]
    return _loop(step, jnp.zeros((x.shape[0], n), product.out_dtype), x.shape[0], ends)


@modes.standard
def _outer(
    x: Float[Array, "M K"], y: Float[Array, "M N"], ends: Int[Array, " E"]
) -> Float32[Array, "E K N"]:
    """The sum of outer products of the rows of every group."""

    def step(sums: Array, group: Array, tile: _Tile) -> Array:
        part = jax.lax.dot_general(
            jnp.where(tile.mask[:, None], tile.of(x), 0).astype(jnp.float32),
            jnp.where(tile.mask[:, None], tile.of(y), 0).astype(jnp.float32),
            (((0,), (0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
        )
        return sums.at[group].add(part)

    sums = jnp.zeros((ends.size, x.shape[1], y.shape[1]), jnp.float32)
    return _loop(step, sums, x.shape[0], ends)


class _Tile(NamedTuple):
    """Rows next to each other, those of one group among them.

    Attributes:
      first: of them.
      mask: which are the group's.
    """

    first: Int[Array, ""]
    mask: Bool[Array, " tile"]

    def of(self, array: Array) -> Array:
        """Its rows of an array."""
        return jax.lax.dynamic_slice_in_dim(array, self.first, self.mask.size)

    def put(self, array: Array, rows: Array) -> Array:
        """The array with the group's rows in place of its own."""
        rows = jnp.where(self.mask[:, None], rows, self.of(array))
        return jax.lax.dynamic_update_slice_in_dim(array, rows, self.first, 0)


def _loop(
    step: Callable[[Array, Array, _Tile], Array], carry: Array, rows: int, ends: Int[Array, " E"]
) -> Array:
    """carry = step(carry, group, tile), for all tiles of all groups."""
    if not rows or not ends.size:
        return carry
    size = min(rows, max(LEAST, min(MOST, 1 << (-(-rows // ends.size) - 1).bit_length())))
    starts = jnp.concatenate((jnp.zeros_like(ends[:1]), ends[:-1]))
    counts = -(-(ends - starts) // size)
    until = jnp.cumsum(counts, dtype=jnp.int32)  # tiles, those of the group included

    def visit(number: Array, carry: Array) -> Array:
        group = jnp.searchsorted(until, number, side="right").astype(jnp.int32)
        begin = starts[group] + (number - until[group] + counts[group]) * size
        first = jnp.minimum(begin, rows - size)
        places = first + jnp.arange(size, dtype=jnp.int32)
        mask = (places >= begin) & (places < jnp.minimum(begin + size, ends[group]))
        return step(carry, group, _Tile(first, mask))

    return jax.lax.fori_loop(jnp.int32(0), until[-1], visit, carry)
