"""Weights as they rest in device memory: compressed at a fixed rate, decoded by the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy import containers, formats
from jentropy.containers.trees import as_array, decompress_where, leaf_name, on_accelerator
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import Format, QuantizedTensor, is_quantized

from . import gpu_targets
from .layouts import LAYOUTS, Matrices
from .targets import KINDS, current_kind

BACKENDS = ("reference", "tpu", "gpu")
SMALL = (
    16 << 20
)  # bytes: a kernel's layout is kept to here, though its padding cost more than it saves


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentTensor:
    """One weight matrix, or a stack of them, in a backend's layout.

    Only `arrays` and `index` are leaves of the pytree; everything else is static. The leading axes
    of every array are those of the stack, so `lax.scan`, `vmap` and `jax.tree.map` take single
    matrices out of it. They copy what they take; `stack[i]` does not: the kernels read the matrix
    where it lies.

    Attributes:
      arrays: what `LAYOUTS[layout].pack` made.
      index: int32[]: the tensor is this matrix of the stack of matrices that the arrays are.
      options: sizes and choices that a compiled program must know.
      layout: name of the layout module.
      number_format: what the weight's codes mean.
      logical: rows and columns of the whole matrix, as it is stored.
      turned: whether the layout holds the transposed matrix.
    """

    arrays: dict[str, jax.Array]
    index: jax.Array | None = None
    options: tuple[tuple[str, int], ...] = field(default=(), metadata={"static": True})
    layout: str = field(metadata={"static": True})
    number_format: Format = field(metadata={"static": True})
    logical: tuple[int, int] = field(metadata={"static": True})
    turned: bool = field(default=False, metadata={"static": True})

    @property
    def module(self) -> ModuleType:
        """The layout's."""
        return LAYOUTS[self.layout]

    @property
    def backend(self) -> str:
        """Whose kernels read it."""
        return self.module.BACKEND

    @property
    def format(self) -> str:
        """Name of its format in reports."""
        return self.number_format.name

    @property
    def stack(self) -> tuple[int, ...]:
        """Leading axes."""
        return () if self.index is not None else self._leading

    @property
    def _leading(self) -> tuple[int, ...]:
        name, rank = self.module.STACKED
        return tuple(self.arrays[name].shape[: self.arrays[name].ndim - rank])

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns; inside `shard_map` those of this device's part."""
        own = self.module.extent(self)
        return own[::-1] if self.turned else own

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as it is stored."""
        return (*self.stack, *self.matrix)

    @property
    def dtype(self) -> np.dtype:
        """What the weight decodes to by default."""
        own = self.number_format.element.dtype
        return own if not self.number_format.parameters else np.dtype(jnp.bfloat16)

    @property
    def nbytes(self) -> int:
        """Bytes that the weight occupies, scales and escapes included."""
        held = sum(array.size * array.dtype.itemsize for array in self.arrays.values())
        return held if self.index is None else held // self._leading[0]

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight occupies, scales and escapes included."""
        return 8 * self.nbytes / max(1, math.prod(self.shape))

    def __getitem__(self, at: Any) -> ResidentTensor:
        """Part of a stack, along its leading axes.

        One integer for each axis, traced or not, gives a matrix that is not copied: `matmul` and
        `decode` read it out of the stack. Traced ones are clipped to the stack.

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
        if len(parts) < len(stack) or any(
            isinstance(part, slice) or np.ndim(part) for part in parts
        ):
            return replace(self, arrays={name: a[parts] for name, a in self.arrays.items()})
        index = jnp.int32(0)
        for part, size in zip(parts, stack, strict=True):
            own = jnp.asarray(part, jnp.int32)
            index = index * size + jnp.clip(jnp.where(own < 0, own + size, own), 0, size - 1)
        arrays = {  # a layout without escapes has arrays of no size
            name: array.reshape(math.prod(stack), *array.shape[len(stack) :])
            for name, array in self.arrays.items()
        }
        return replace(self, arrays=arrays, index=index)

    def own(self) -> ResidentTensor:
        """The same tensor with arrays of its own: a copy of a matrix that lies in a stack."""
        if self.index is None:
            return self
        arrays = {
            name: jax.lax.dynamic_index_in_dim(array, self.index, keepdims=False)
            for name, array in self.arrays.items()
        }
        return replace(self, arrays=arrays, index=None)

    def partition_specs(
        self, outputs: str | None = None, inputs: str | None = None
    ) -> ResidentTensor:
        """How `shard_map` splits the weight: a `ResidentTensor` of partition specs, for `in_specs`.

        Args:
          outputs: mesh axis that splits what products give: N of the product that is fused, in
            whole tiles of the layout (128 columns, of window12 1024). Results are split alike.
          inputs: mesh axis that splits what they sum over, in whole tiles of rows. Every device
            gets a part of the sum: add them with `lax.psum`.

        Raises:
          UnsupportedError: a layout that cannot be split.
        """
        if not self.module.COLUMNS:
            raise UnsupportedError(
                "splitting a resident weight", expected="tpu", found=self.backend
            )

        def spec(name: str, array: Any) -> jax.sharding.PartitionSpec:
            axes: list[str | None] = [None] * array.ndim
            if name in self.module.COLUMNS:
                axes[self.module.COLUMNS[name]] = outputs
            axis = self.module.ROWS.get(name)
            if axis is not None and array.shape[axis] > 1:  # one entry serves all rows
                axes[axis] = inputs
            return jax.sharding.PartitionSpec(*axes)

        specs = {name: spec(name, array) for name, array in self.arrays.items()}
        return replace(self, arrays=specs)  # type: ignore[arg-type]

    def option(self, name: str) -> int:
        """One of the options."""
        return dict(self.options)[name]


def default_backend() -> str:
    """The backend whose layout suits this process's default device.

    "tpu" and "gpu" on the generations that have kernels; "reference" on everything else, with a
    message in the log if it is a GPU.
    """
    if current_kind() in KINDS:
        return "tpu"
    return "gpu" if gpu_targets.runs_on(jax.devices()[0]) else "reference"


def to_resident(packed: Any, backend: str | None = None, *, reduce_axis: int = -1) -> Any:
    """Decodes archived tensors on the device and lays them out for a backend's kernels.

    Matrices, and stacks of them, become `ResidentTensor`; vectors, scalars, and matrices that no
    layout makes smaller stay dense arrays of their dtype, every code kept.

    =====================  ==========================  =====================  ====================
    format                 backend "reference"         backend "tpu"          backend "gpu"
    =====================  ==========================  =====================  ====================
    BF16                   window12: every code        window12: every code   window12: every code
    FP8 E4M3, E5M2; MXFP8  codes and scales            codes and scales       the reference layout
    INT8, INT4             codes, scales, zero points  codes; scales and      the reference layout
                                                       zero points as numbers
    MXFP4, NVFP4, GPTQ's   codes and parameters        the reference layout   the reference layout
    act-order, all others
    =====================  ==========================  =====================  ====================

    All of them decode to the same bits (`decode`). A format that the backend's kernels cannot hold
    (see the table; on TPU groups along the sum that are no power of two from 32 on; on GPU BF16 of
    which an eighth of 64 x 128 weights are escapes) rests in the reference
    layout and multiplies there; `weight.backend` says so.

    Args:
      packed: a pytree whose leaves are `CompressedTensor`, arrays, `formats.QuantizedTensor` (its
        codes compressed or not), or tensors of `open_checkpoint`.
      backend: "reference", "tpu" or "gpu"; None takes the one of the default device.
      reduce_axis: the axis of each matrix that products sum over: -1 for [N, K] as in checkpoints
        (`transpose_w=True`), -2 for [K, N]. The other product works too, by way of dense tiles.

    Returns:
      The same pytree, its leaves `ResidentTensor` or `jax.Array`.

    Raises:
      UnsupportedError: an unknown backend; a dtype of 64 bits, which JAX does not have by default.

    Example:
      >>> import jax.numpy as jnp, jentropy
      >>> packed = jentropy.compress(jnp.ones((128, 512), jnp.bfloat16))
      >>> w = jentropy.to_resident(packed, backend="reference")
      >>> w.shape, round(w.bits_per_weight, 1)
      ((128, 512), 12.1)
    """
    chosen = default_backend() if backend is None else backend
    if chosen not in BACKENDS:
        raise UnsupportedError("backend", expected=" or ".join(BACKENDS), found=repr(chosen))
    if reduce_axis not in (-1, -2):
        raise InputError("reduce_axis", expected="-1 or -2", found=reduce_axis)

    def is_leaf(node: Any) -> bool:
        return containers.is_compressed(node) or is_quantized(node)

    def convert(path: tuple, leaf: Any) -> Any:
        try:
            return _leaf_to_resident(leaf, chosen, reduce_axis)
        except InputError as error:
            raise error.at(tensor=leaf_name(path) or None) from error

    return jax.tree_util.tree_map_with_path(convert, packed, is_leaf=is_leaf)


def _leaf_to_resident(leaf: Any, backend: str, reduce_axis: int) -> ResidentTensor | jax.Array:
    if is_quantized(leaf):
        return lay_out(leaf, backend, reduce_axis)
    values = decompress_where(leaf, on_accelerator) if containers.is_compressed(leaf) else leaf
    return lay_out(
        values if isinstance(values, jax.Array) else as_array(values), backend, reduce_axis
    )


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
