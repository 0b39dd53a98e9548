"""Weights as they rest in device memory: compressed at a fixed rate, decoded by the kernels.

`LAYOUTS` names, for every format and backend, the module that packs codes into that backend's
order. A format without an entry rests dense, as the array it decodes to.

A layout module has `pack(codes) -> arrays, limits`; its backend's `decode` and `decode_matmul`
read them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy import containers, formats
from jentropy.containers.trees import as_array, decompress_where, on_accelerator
from jentropy.errors import UnsupportedError

from .decode import reference

LAYOUTS = {("BF16", "reference"): reference}
BACKENDS = ("reference", "tpu", "gpu")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentTensor:
    """One weight matrix, or a stack of them, in a backend's layout.

    Invariants: `arrays` and `limits` (sizes that a compiled program must know) are what the layout
    module of (`format`, `backend`) packed from codes of `shape`, which has two dimensions or more.
    Only `arrays` are leaves of the pytree; everything else is static.
    """

    arrays: dict[str, jax.Array]
    limits: tuple[tuple[str, int], ...] = field(default=(), metadata={"static": True})
    format: str = field(metadata={"static": True})
    backend: str = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})

    @property
    def dtype(self) -> np.dtype:
        """What the weight decodes to."""
        return formats.ELEMENTS[self.format].dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the weight occupies, escapes included."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight occupies, escapes included."""
        return 8 * self.nbytes / max(1, math.prod(self.shape))


def default_backend() -> str:
    """The backend whose layout suits this process's default device."""
    return "reference"


def to_resident(packed: Any, backend: str | None = None) -> Any:
    """Decodes archived tensors on the device and lays them out for a backend's kernels.

    BF16 matrices become window12: every code survives, escapes (NaN payloads, subnormals, rare
    exponents) in a list of their own. Vectors, scalars and all other formats become dense arrays
    of their dtype, which keep every code too. A matrix that window12 would not make smaller
    stays dense.

    Args:
      packed: a pytree whose leaves are `CompressedTensor` or arrays.
      backend: "reference", "tpu" or "gpu"; None takes the one of the default device.

    Returns:
      The same pytree, its leaves `ResidentTensor` or `jax.Array`.

    Raises:
      UnsupportedError: a backend that has no layout for a leaf's format; a dtype of 64 bits, which
        JAX does not have by default.

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
    return jax.tree.map(
        lambda leaf: _leaf_to_resident(leaf, chosen), packed, is_leaf=containers.is_compressed
    )


def _leaf_to_resident(leaf: Any, backend: str) -> ResidentTensor | jax.Array:
    values = decompress_where(leaf, on_accelerator) if containers.is_compressed(leaf) else leaf
    return lay_out(values if isinstance(values, jax.Array) else as_array(values), backend)


def lay_out(values: Any, backend: str) -> ResidentTensor | jax.Array:
    """One array in a backend's layout, or dense where that is as small."""
    name = formats.format_of_dtype(values.dtype)
    if jax.dtypes.canonicalize_dtype(values.dtype) != values.dtype:
        raise UnsupportedError(
            f"a resident tensor of {values.dtype}",
            hint="JAX has 64 bits with jax_enable_x64 only",
        )
    if values.ndim < 2 or values.size == 0 or not any(name == key[0] for key in LAYOUTS):
        return jnp.asarray(values)
    layout = LAYOUTS.get((name, backend))
    if layout is None:
        raise UnsupportedError(
            f"no {name} layout for backend {backend!r}",
            expected=" or ".join(b for n, b in LAYOUTS if n == name),
            found=backend,
        )
    arrays, limits = layout.pack(np.asarray(formats.codes_of(values)))
    weight = ResidentTensor(
        arrays=arrays,
        limits=limits,
        format=name,
        backend=backend,
        shape=tuple(values.shape),
    )
    dense_bytes = values.size * values.dtype.itemsize
    return weight if weight.nbytes < dense_bytes else jnp.asarray(values)
