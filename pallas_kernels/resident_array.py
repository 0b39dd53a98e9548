"""A resident weight that stands where an array stood: with the array's axes, shape and dtype.

Layers of Flax keep kernels as [in, heads, head_dim], [heads, head_dim, out] or [heads, in,
head_dim]. Each is one matrix, whose rows and columns may have several axes; only axes before those
of the matrix are a stack. Which is which, the layer knows and the array does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from jentropy import modes

from .decoding import decode_tensor
from .resident import ResidentTensor, one_line


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ResidentArray:
    """An array that is read and not written, and rests compressed.

    `folding.resident_array` makes one. `jnp.asarray` and operators of JAX's arrays decode it,
    `general.dot_general` multiplies from the compressed bytes. Only the arrays of `weight` are
    leaves of the pytree, so that `lax.scan`, `vmap` and `jax.tree.map` take single matrices out of
    a stack.

    Attributes:
      weight: the matrix, or a stack of them.
      sizes: of the array's axes, without those of the stack.
      rows, columns: which of these axes are the matrix's rows and columns, in order.
      dtype: of the array, whatever the weight decodes to.

    Example:
      >>> from jentropy.pallas_kernels.folding import resident_array
      >>> kernel = resident_array(jnp.ones((512, 8, 64), jnp.bfloat16), [0], [1, 2], "reference")
      >>> kernel
      ResidentArray(bfloat16[512, 8, 64], reference_window12, 12.06 bits each)
      >>> kernel.weight.shape, bool((jnp.asarray(kernel) == 1).all())
      ((512, 512), True)
    """

    weight: ResidentTensor
    sizes: tuple[int, ...] = field(metadata={"static": True})
    rows: tuple[int, ...] = field(metadata={"static": True})
    columns: tuple[int, ...] = field(metadata={"static": True})
    dtype: np.dtype = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return (*self.weight.stack, *self.sizes)

    @property
    def ndim(self) -> int:
        """Axes of the array."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Elements of the array."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies."""
        return self.weight.nbytes

    @property
    def T(self) -> Array:
        """The decoded array, transposed."""
        return self.__jax_array__().T

    def astype(self, dtype: Any) -> ResidentArray:
        """The array in another dtype, to which its numbers are rounded where they are used."""
        return replace(self, dtype=jnp.dtype(dtype))

    def shaped(self, decoded: Shaped[Array, "*stack rows columns"]) -> Shaped[Array, "*shape"]:
        """What `weight` decodes to, as the array."""
        order = (*self.rows, *self.columns)
        stack = decoded.ndim - 2
        split = decoded.reshape(*decoded.shape[:stack], *(self.sizes[axis] for axis in order))
        back = (stack + order.index(axis) for axis in range(len(order)))
        return split.transpose(*range(stack), *back).astype(self.dtype)

    def __repr__(self) -> str:
        return one_line(self, str(self.dtype), self.sizes, self.weight)

    def decoded(self, interpret: Any = False) -> Shaped[Array, "*shape"]:
        """The dense array; kernels run in interpret mode if that is asked for, see `matmul`."""
        wide = self.dtype if self.dtype == jnp.bfloat16 else jnp.float32
        matrix = decode_tensor(self.weight, wide, interpret)
        return modes.automatic(self.shaped, matrix, out=PartitionSpec)

    def __jax_array__(self) -> Array:
        return self.decoded()
