"""Weights of which every device of a mesh has a part, and products with them.

A part is a weight of its own, packed by itself: some rows of the matrix, some columns, or some
matrices of a stack. All parts are of one size, the last ones filled up with zeros, so that any
matrix can be split over any number of devices. Each device multiplies by its part with the kernels
of its backend, under `shard_map`:

    split by what a product gives       every device has some of the results. Put together they are
                                        the bits that one device gives
    split by what a product sums over   every device has a part of each sum; they are added
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from jentropy import modes
from jentropy.errors import UnsupportedError
from jentropy.formats import Format

from .dense_layer import DenseLayer, layer_of
from .resident import ResidentTensor

Axes = tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedTensor:
    """A weight, or a stack of weights, over a mesh.

    Attributes:
      parts: what every device has of it: a `ResidentTensor` or an array, whose leading axes are
        the stack's, what is left of a third axis of the weight, and the parts.
      index: int32[]: the weight is this one of the stack.
      mesh: with any types of axes.
      axes: of the mesh, along which the parts lie, in this order; none: every device has all of it.
      split: the weight's axis that is split, -1, -2 or -3; None: none is.
      logical: shape of the weight without what fills parts up.
      gathered: whether every device is given all results of a product; else they stay split where
        the parts divide them evenly.
      batch: axes of the mesh that split the first axis of x.

    Example:
      >>> import jax, jax.numpy as jnp, jentropy
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> rows = jentropy.to_resident(jnp.ones((1, 64, 128), jnp.bfloat16), "reference")
      >>> w = ShardedTensor(parts=rows, mesh=mesh, axes=("model",), split=-2, logical=(60, 128))
      >>> w.shape, jentropy.matmul(jnp.ones((2, 128)), w, transpose_w=True).shape
      ((60, 128), (2, 60))
    """

    parts: Any
    index: Any = None
    mesh: Mesh | AbstractMesh = field(metadata={"static": True})
    axes: Axes = field(default=(), metadata={"static": True})
    split: int | None = field(default=None, metadata={"static": True})
    logical: tuple[int, ...] = field(metadata={"static": True})
    gathered: bool = field(default=True, metadata={"static": True})
    batch: Axes = field(default=(), metadata={"static": True})

    @property
    def _leading(self) -> tuple[int, ...]:
        """The stack's axes."""
        shape = self.parts.shape
        return tuple(shape[: len(shape) - 1 - len(self.logical)])

    @property
    def _axis(self) -> int:
        """Of the parts, in all arrays."""
        return len(self.parts.shape) - 3

    @property
    def stack(self) -> tuple[int, ...]:
        """Leading axes."""
        return () if self.index is not None else self._leading

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as it is stored."""
        return (*self.stack, *self.logical)

    @property
    def dtype(self) -> np.dtype:
        """What the weight decodes to by default."""
        return np.dtype(self.parts.dtype)

    @property
    def number_format(self) -> Format | None:
        """What the codes of its parts mean; None of dense ones."""
        return self.parts.number_format if isinstance(self.parts, ResidentTensor) else None

    @property
    def backend(self) -> str:
        """Whose kernels read the parts."""
        return self.parts.backend if isinstance(self.parts, ResidentTensor) else "reference"

    @property
    def nbytes(self) -> int:
        """Bytes of all different parts."""
        total = int(self.parts.nbytes)
        return total if self.index is None else total // self._leading[0]

    @property
    def total(self) -> int:
        """What the parts have together along it, filled up."""
        return self.size * math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def size(self) -> int:
        """Rows, columns or matrices of a part along the axis that is split."""
        return self.parts.shape[-4 if self.split == -3 else self.split or -1]

    def __getitem__(self, at: Any) -> ShardedTensor:
        """Some weights of a stack, by its first axis: an integer, traced or not, or a slice."""
        if not self.stack:
            raise IndexError("a single weight")
        if isinstance(at, slice) or np.ndim(at):
            return replace(self, parts=jax.tree.map(lambda array: array[at], self.parts))
        return self.layer(at)

    def layer(self, at: Any) -> ShardedTensor:
        """One weight of a stack, read where it lies.

        Args:
          at: an integer, traced or not.

        Returns:
          A `ShardedTensor` of the other axes.
        """
        if not self.stack:
            raise IndexError("a single weight")
        return replace(self, index=jnp.asarray(at, jnp.int32))

    def specs(self) -> ShardedTensor:
        """The same tensor, partition specs in the places of its arrays, as `shard_map` takes it."""
        spec = PartitionSpec(*(None for _ in range(self._axis)), self.axes or None)
        parts = jax.tree.map(lambda _: spec, self.parts)
        return replace(self, parts=parts, index=None if self.index is None else PartitionSpec())

    def own(self) -> ResidentTensor | DenseLayer | Array:
        """This device's part, inside of `shard_map`."""
        part = jax.tree.map(lambda array: array.squeeze(self._axis), self.parts)
        if self.index is None:
            return part
        if isinstance(part, ResidentTensor):
            return part.layer(self.index)
        return layer_of(part, self.index)

    def spread(self, axis: int) -> Any:
        """What `run` of `over` gives along the axis that is split, along an axis of all results."""
        return partial(jax.lax.all_gather, axis_name=self.axes, axis=axis, tiled=True)


def over(w: ShardedTensor, run: Callable[..., Any], specs: Any, out: Any) -> Callable[..., Any]:
    """run(w, ...) on every device of the weight's mesh.

    Args:
      run: takes the tensor as the device has it, and parts of other arguments.
      specs: of the other arguments.
      out: specs of the results.

    Raises:
      UnsupportedError: inside of another `shard_map`.
    """
    return partial(over_devices(w.mesh, run, (w.specs(), *specs), out), w)


def over_devices(
    mesh: Mesh | AbstractMesh, run: Callable[..., Any], specs: Any, out: Any
) -> Callable[..., Any]:
    """run(...) on every device of a mesh, as `over` of a weight."""
    context = jax.sharding.get_abstract_mesh()
    if AxisType.Manual in context.axis_types:
        raise UnsupportedError(
            "a weight over a mesh", expected="a call outside of shard_map", found="one inside"
        )
    return jax.shard_map(
        run,
        mesh=mesh if context.empty else None,
        in_specs=specs,
        out_specs=out,
        check_vma=False,
    )


def _rows_spec(w: ShardedTensor, shape: tuple[int, ...]) -> list[Any]:
    """How the axes of x but the last are split: the first by the batch where that divides it."""
    if not shape:
        return []
    devices = math.prod(w.mesh.shape[axis] for axis in w.batch)
    divides = w.batch and shape[0] % devices == 0
    return [w.batch if divides else None, *(None for _ in shape[1:])]


@modes.standard
def matmul(
    x: Float[Array | np.ndarray, "*batch K"],
    w: ShardedTensor,
    product: Callable[..., Array],
    *,
    transpose_w: bool,
    out_dtype: Any,
) -> Float[Array, "*batch N"]:
    """x @ w, or by the transpose of w.

    Args:
      product: (x, part, out_dtype) -> their product.
    """
    x, rows = jnp.asarray(x), _rows_spec(w, x.shape[:-1])
    outputs, whole = w.logical[-2 if transpose_w else -1], PartitionSpec(*rows, None)
    if w.split is None:
        run = lambda w, x: product(x, w.own(), out_dtype)  # noqa: E731
        return over(w, run, (whole,), whole)(x)
    pieces = PartitionSpec(*rows, w.axes)
    if w.split == (-1 if transpose_w else -2):
        wide = jnp.promote_types(out_dtype, jnp.float32)
        missing = [(0, 0)] * (x.ndim - 1) + [(0, w.total - x.shape[-1])]
        run = lambda w, x: jax.lax.psum(product(x, w.own(), wide), w.axes)  # noqa: E731
        return over(w, run, (pieces,), whole)(jnp.pad(x, missing)).astype(out_dtype)
    if not w.gathered and w.total == outputs:
        run = lambda w, x: product(x, w.own(), out_dtype)  # noqa: E731
        return over(w, run, (whole,), pieces)(x)
    run = lambda w, x: w.spread(-1)(product(x, w.own(), out_dtype))[..., :outputs]  # noqa: E731
    return over(w, run, (whole,), whole)(x)


@modes.standard
def grouped_matmul(
    x: Float[Array, "M K"],
    w: ShardedTensor,
    ends: Int[Array, " E"],
    product: Callable[..., Array],
    *,
    transpose_w: bool,
    out_dtype: Any,
) -> Float[Array, "M N"]:
    """x @ w with a matrix of w for every group of rows, which end before `ends`.

    Args:
      product: (x, part, ends, out_dtype) -> their product; rows of no group give 0.
    """
    if w.split == -3:
        own = lambda x, parts, ends: product(x, *parts, ends, out_dtype)  # noqa: E731
        return by_matrices(own, [w], x, ends)
    outputs = w.logical[-2 if transpose_w else -1]
    wide = jnp.promote_types(out_dtype, jnp.float32)

    def run(w: ShardedTensor, x: Array, ends: Array) -> Array:
        if w.split is None:
            return product(x, w.own(), ends, out_dtype)
        if w.split == (-1 if transpose_w else -2):
            return jax.lax.psum(product(x, w.own(), ends, wide), w.axes).astype(out_dtype)
        return w.spread(-1)(product(x, w.own(), ends, out_dtype))[..., :outputs]

    columns = None
    if w.split == (-1 if transpose_w else -2):
        columns = w.axes
        x = jnp.pad(x, ((0, 0), (0, w.total - x.shape[-1])))
    specs = PartitionSpec(None, columns), PartitionSpec()
    return over(w, run, specs, PartitionSpec())(x, ends)


def split_by_matrices(weights: Sequence[Any]) -> bool:
    """Whether each device of a mesh has the same matrices of some stacks, of any kind."""
    first = weights[0]
    return all(
        isinstance(w, ShardedTensor)
        and w.split == -3
        and (w.mesh, w.axes, w.size) == (first.mesh, first.axes, first.size)
        for w in weights
    )


@modes.standard
def by_matrices(
    run: Callable[..., Array],
    weights: Sequence[ShardedTensor],
    x: Float[Array, "M K"],
    ends: Int[Array, " E"],
    *beside: Any,
) -> Float[Array, "M N"]:
    """run(x, parts, ends, *beside) by every device for the groups whose matrices it has.

    A row is one device's, so that adding what all make of rows, once, rounds nothing.

    Args:
      run: is given the device's own matrices of each weight, and their rows first.
      weights: as `split_by_matrices` has them.
      ends: of groups.
      beside: pytrees of arrays that have an entry for each row of x.
    """

    def on_device(w: ShardedTensor, others: list, x: Array, ends: Array, beside: Any) -> Array:
        first = jax.lax.axis_index(w.axes) * w.size
        before = jnp.where(first > 0, ends[first - 1], 0)
        own = jax.lax.dynamic_slice_in_dim(ends, first, w.size) - before
        x, *beside = jax.tree.map(lambda rows: _rolled(rows, before), (x, *beside))
        y = run(x, [one.own() for one in (w, *others)], own, *beside)
        y = jnp.where(jnp.arange(y.shape[0])[:, None] < own[-1], y, 0)
        return jax.lax.psum(_rolled(y, y.shape[0] - before), w.axes)

    first, *others = weights
    whole = PartitionSpec()
    specs = [w.specs() for w in others], whole, whole, whole
    return over(first, on_device, specs, whole)(others, x, ends, beside)


def _rolled(rows: Array, shift: Int[Array, ""]) -> Array:
    """The rows from `shift` on, and then those before."""
    twice = jnp.concatenate((rows, rows))
    return jax.lax.dynamic_slice_in_dim(twice, shift, rows.shape[0])


@modes.standard
def take_rows(
    w: ShardedTensor, ids: Int[Array, "*batch"], dtype: Any, take: Callable[..., Array]
) -> Shaped[Array, "*batch columns"]:
    """Rows of a matrix, bit for bit.

    Args:
      take: (part, ids, dtype) -> rows of a part, ids clipped to it.
    """
    height, width = w.logical
    ids, rows = jnp.clip(ids, 0, height - 1), _rows_spec(w, ids.shape)

    def run(w: ShardedTensor, ids: Array) -> Array:
        if w.split is None:
            return take(w.own(), ids, dtype)
        if w.split == -1:
            return w.spread(-1)(take(w.own(), ids, dtype))[..., :width]
        own = ids - jax.lax.axis_index(w.axes) * w.size
        taken = take(w.own(), own, dtype)
        # Added as integers: -0 + 0 is not -0, and a payload of NaN would change.
        unsigned = jnp.dtype(f"uint{8 * taken.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(taken, unsigned).astype(jnp.uint32)
        bits = jnp.where(((own >= 0) & (own < w.size))[..., None], bits, jnp.uint32(0))
        bits = jax.lax.psum(bits, w.axes).astype(unsigned)
        return jax.lax.bitcast_convert_type(bits, taken.dtype)

    return over(w, run, (PartitionSpec(*rows),), PartitionSpec(*rows, None))(ids)


@modes.standard
def decode(w: ShardedTensor, decode_part: Callable[[Any], Array]) -> Shaped[Array, "*shape"]:
    """The dense weight, on every device.

    Args:
      decode_part: (part) -> its numbers.
    """

    def run(w: ShardedTensor) -> Array:
        dense = decode_part(w.own())
        if w.split is None:
            return dense
        whole = w.spread(dense.ndim + w.split)(dense)
        return jax.lax.slice_in_dim(whole, 0, w.logical[w.split], axis=whole.ndim + w.split)

    return over(w, run, (), PartitionSpec())()
