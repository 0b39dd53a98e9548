"""Weights as they rest in device memory: compressed at a fixed rate, decoded by the kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy import containers, modes
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import Format, QuantizedTensor

from .layout import Layout
from .tiles import ceil_to


def expect_weight(weight: Any) -> None:
    """Raises InputError unless kernels can read a weight: it is resident, or a dense array."""
    parts = weight.arrays.values() if isinstance(weight, ResidentTensor) else ()
    if any(isinstance(part, jax.ShapeDtypeStruct) for part in parts):
        raise InputError(
            "weight",
            expected="one with data",
            found="jax.ShapeDtypeStruct",
            hint="an abstract one is for jax.jit(...).lower(...) and jax.eval_shape",
        )
    if isinstance(weight, ResidentTensor | jax.Array | np.ndarray):
        return
    packed = containers.is_compressed(weight) or isinstance(weight, QuantizedTensor)
    raise InputError(
        "weight",
        expected="a ResidentTensor or an array",
        found=type(weight).__name__,
        hint="jentropy.to_resident(weight) gives one" if packed else None,
    )


def one_line(array: Any, kind: str, whole: Sequence[int], weight: ResidentTensor) -> str:
    """What an array prints as.

    Args:
      array: over a weight, or the weight itself.
      kind: its format or dtype.
      whole: its sizes where it is a tree of something else than arrays, without a stack's.
      weight: what it is made of.

    Returns:
      Its class, kind and sizes, and its weight's layout and bits.
    """
    try:
        sizes, bits = array.shape, f", {weight.bits_per_weight:.2f} bits each"
    except (AttributeError, TypeError):
        sizes, bits = whole, ""
    return f"{type(array).__name__}({kind}{list(sizes)}, {weight.layout}{bits})"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentTensor:
    """One weight matrix, or a stack of them, in a backend's layout.

    Only `arrays` and `index` are leaves of the pytree; everything else is static. The leading axes
    of every array are those of the stack, so `lax.scan`, `vmap` and `jax.tree.map` take single
    matrices out of it. They copy what they take; `stack[i]` does not: the kernels read the matrix
    where it lies.

    Attributes:
      arrays: what the layout's `pack` made.
      index: int32[*stack]: the tensor is this matrix, or these, of the stack that the arrays are.
      options: sizes and choices that a compiled program must know.
      layout: name of the layout, a key of `LAYOUTS`.
      number_format: what the weight's codes mean.
      logical: rows and columns of the whole matrix, as it is stored.
      transposed: whether the layout holds the transposed matrix.

    Example:
      >>> import jax.numpy as jnp, jentropy
      >>> w = jentropy.to_resident(jnp.ones((3, 128, 512), jnp.bfloat16), "reference")
      >>> w
      ResidentTensor(BF16[3, 128, 512], reference_window12, 12.06 bits each)
      >>> w.shape, w.stack, w[1].shape
      ((3, 128, 512), (3,), (128, 512))
    """

    arrays: dict[str, Any]  # or their shapes, or how a mesh splits them
    index: Any = None
    options: tuple[tuple[str, int], ...] = field(default=(), metadata={"static": True})
    layout: str = field(metadata={"static": True})
    number_format: Format = field(metadata={"static": True})
    logical: tuple[int, int] = field(metadata={"static": True})
    transposed: bool = field(default=False, metadata={"static": True})

    @property
    def record(self) -> Layout:
        """The layout."""
        from .layouts import LAYOUTS  # whose functions take resident tensors

        return LAYOUTS[self.layout]

    @property
    def backend(self) -> str:
        """Whose kernels read it."""
        return self.record.backend

    @property
    def format(self) -> str:
        """Name of its format in reports."""
        return self.number_format.name

    @property
    def stack(self) -> tuple[int, ...]:
        """Leading axes."""
        return self._leading if self.index is None else np.shape(self.index)

    @property
    def _leading(self) -> tuple[int, ...]:
        name, rank = self.record.stacked
        return tuple(self.arrays[name].shape[: self.arrays[name].ndim - rank])

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of what is packed; inside `shard_map` those of this device's part."""
        whole = self.logical[::-1] if self.transposed else self.logical
        sizes, multiples = self.record.extent(self)
        rows, columns = (
            size if ceil_to(size, multiple) == padded else padded
            for size, padded, multiple in zip(whole, sizes, multiples, strict=True)
        )
        return rows, columns

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns as it is stored; inside `shard_map` those of this device's part."""
        return self.extent[::-1] if self.transposed else self.extent

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as it is stored."""
        return (*self.stack, *self.matrix)

    @property
    def dtype(self) -> np.dtype:
        """What the weight decodes to by default."""
        element = self.number_format.element.dtype
        return element if self.number_format.is_plain else np.dtype(jnp.bfloat16)

    @property
    def nbytes(self) -> int:
        """Bytes that the weight occupies, scales and escapes included."""
        total = sum(array.size * array.dtype.itemsize for array in self.arrays.values())
        if self.index is None:
            return total
        return total // self._leading[0] * math.prod(self.stack)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight occupies, scales and escapes included."""
        return 8 * self.nbytes / max(1, math.prod(self.shape))

    def __repr__(self) -> str:
        return one_line(self, self.format, self.logical, self)

    def __getitem__(self, at: Any) -> ResidentTensor:
        """Part of a stack, along its leading axes.

        One integer for each axis, traced or not, gives a matrix that is not copied: `matmul` and
        `decode` read it out of the stack. Traced ones are clipped to the stack.

        Args:
          at: integers, slices and arrays, as of an array with the shape `stack`.

        Returns:
          A `ResidentTensor`: one matrix, or a smaller stack of them.

        Raises:
          IndexError: a single matrix, an index outside the stack, too many of them.

        Example:
          >>> import jax, jax.numpy as jnp, jentropy
          >>> layers = jentropy.to_resident(jnp.ones((3, 512, 512), jnp.bfloat16))
          >>> def layer(x, i):
          ...     return jentropy.matmul(x, layers[i], transpose_w=True), None
          >>> jax.lax.scan(layer, jnp.ones((2, 512), jnp.bfloat16), jnp.arange(3))[0].shape
          (2, 512)
        """
        stack = self.stack
        parts = at if isinstance(at, tuple) else (at,)
        if len(parts) > len(stack):
            raise IndexError(f"{len(parts)} indices into a stack of shape {list(stack)}")
        for part, size in zip(parts, stack, strict=False):
            if isinstance(part, int | np.integer) and not -size <= part < size:
                raise IndexError(f"index {part} into a stack of shape {list(stack)}")
        if self.index is not None:
            with modes.standard_modes():
                return replace(self, index=jnp.asarray(self.index)[parts])
        if len(parts) < len(stack) or any(
            isinstance(part, slice) or np.ndim(part) for part in parts
        ):
            return replace(self, arrays={name: a[parts] for name, a in self.arrays.items()})
        return self._within(parts)

    def layer(self, at: Any) -> ResidentTensor:
        """Matrices of a stack by the first of its axes, read where they lie as `stack[i]` is.

        What `stack[i]` of a stack of stacks would copy, the experts of a layer, this does not.
        `matmul`, `grouped_matmul` and `decode` take it; `lax.scan` and `vmap` over its matrices
        want `stack[i]`.

        Args:
          at: an integer, traced or not.

        Returns:
          A `ResidentTensor` of the other axes.

        Raises:
          IndexError: a single matrix, an index outside the stack.

        Example:
          >>> import jax.numpy as jnp, jentropy
          >>> experts = jentropy.to_resident(jnp.ones((2, 3, 64, 64), jnp.bfloat16), "reference")
          >>> experts.layer(1).shape, experts.layer(1)[2].shape
          ((3, 64, 64), (64, 64))
        """
        stack = self.stack
        if not stack or (isinstance(at, int | np.integer) and not -stack[0] <= at < stack[0]):
            raise IndexError(f"index {at} into a stack of shape {list(stack)}")
        return self[at] if self.index is not None else self._within((at,))

    def _within(self, parts: tuple[Any, ...]) -> ResidentTensor:
        """Matrices by integers for the first axes, which are clipped to the stack."""
        stack = self.stack
        inner = stack[len(parts) :]
        with modes.standard_modes():
            index = jnp.int32(0)
            for part, size in zip(parts, stack, strict=False):
                place = jnp.asarray(part, jnp.int32)
                place = jnp.where(place < 0, place + size, place)
                index = index * size + jnp.clip(place, 0, size - 1)
            each = jnp.arange(math.prod(inner), dtype=jnp.int32).reshape(inner)
            index = index * math.prod(inner) + each
        arrays = {  # a layout without escapes has arrays of no size
            name: array.reshape(math.prod(stack), *array.shape[len(stack) :])
            for name, array in self.arrays.items()
        }
        return replace(self, arrays=arrays, index=index)

    def array(self, name: str) -> jax.Array:
        """One of the arrays; of matrices in a stack a copy of their parts."""
        array = self.arrays[name]
        if self.index is None:
            return array
        if self.stack:
            return array[self.index]
        return jax.lax.dynamic_index_in_dim(array, self.index, keepdims=False)

    def which(self) -> list[jax.Array]:
        """int32[1] that says which matrix it is, or int32[matrices] of several; none of no stack.

        What a kernel is given a slice of, XLA copies first: three times the bytes. So kernels take
        whole arrays of a stack.
        """
        return [] if self.index is None else [self.index.reshape(-1)]

    def alone(self) -> ResidentTensor:
        """The same tensor without a stack around it: a copy of the matrices that lie in one."""
        if self.index is None:
            return self
        return replace(self, arrays={name: self.array(name) for name in self.arrays}, index=None)

    def partition_specs(
        self, outputs: str | None = None, inputs: str | None = None
    ) -> ResidentTensor:
        """How `shard_map` splits the weight: a `ResidentTensor` of partition specs, for `in_specs`.

        Args:
          outputs: mesh axis that splits what products give: N of the product that is fused, in
            whole tiles of the layout (128 columns, of window12 1024). Results are split alike.
          inputs: mesh axis that splits what they sum over, in whole tiles of rows. Every device
            gets a part of the sum: add them with `lax.psum`.

        Returns:
          The same tensor with `jax.sharding.PartitionSpec` in the places of its arrays.

        Raises:
          UnsupportedError: a layout that cannot be split.

        Example:
          >>> import jax.numpy as jnp, jentropy
          >>> w = jentropy.to_resident(jnp.ones((2048, 512), jnp.bfloat16), "tpu")
          >>> tuple(w.partition_specs(outputs="d").arrays["words"])
          (None, None, 'd')
        """
        record = self.record
        if not record.columns:
            raise UnsupportedError(
                "splitting a resident weight", expected="tpu", found=self.backend
            )

        of_columns, of_rows = (inputs, outputs) if record.reduces == -1 else (outputs, inputs)

        def spec(name: str, array: Any) -> jax.sharding.PartitionSpec:
            axes: list[str | None] = [None] * array.ndim
            if name in record.columns:
                axes[record.columns[name]] = of_columns
            axis = record.rows.get(name)
            if axis is not None and array.shape[axis] > 1:  # one entry serves all rows
                axes[axis] = of_rows
            return jax.sharding.PartitionSpec(*axes)

        specs = {name: spec(name, array) for name, array in self.arrays.items()}
        return replace(self, arrays=specs)

    def option(self, name: str) -> int:
        """One of the options."""
        return dict(self.options)[name]
