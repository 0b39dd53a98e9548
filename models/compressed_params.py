"""Parameters of Flax Linen modules that rest compressed; `module.apply` is called as before.

Linen keeps parameters apart from modules and lets a parameter be a box (`flax.linen.meta`), which
it opens where a layer asks for it. The boxes here decode then: one layer's weights are dense while
it computes, and the others rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax.core import meta

from jentropy import pallas_kernels as kernels
from jentropy.containers.trees import leaf_name
from jentropy.errors import InputError
from jentropy.formats import Format
from jentropy.pallas_kernels import ResidentArray
from jentropy.pallas_kernels.general import decoded

from .compressing import LEAST

_TABLE, _WEIGHTS = "embedding", ("kernel", "embedding")
# Of kernels in `nn.MultiHeadDotProductAttention`, by the layer's name: axes of rows and columns.
_ATTENTION = {"query": (1, 2), "key": (1, 2), "value": (1, 2), "out": (2, 1)}

Path = tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class CompressedParam(meta.AxisMetadata):
    """A box with a `ResidentArray`, which opens to the dense array.

    Attributes:
      value: the array, or a part of a stack of it, as `nn.scan` takes.

    Example:
      >>> import jax.numpy as jnp
      >>> box = CompressedParam(kernels.resident_array(jnp.ones((64, 128)), [0], [1], "reference"))
      >>> meta.unbox({"kernel": box})["kernel"].shape
      (64, 128)
    """

    value: Any

    def unbox(self) -> Any:
        """The array, decoded."""
        return decoded(self.value) if isinstance(self.value, ResidentArray) else self.value

    def replace_boxed(self, val: Any) -> CompressedParam:
        """Another value in such a box."""
        return replace(self, value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> CompressedParam:
        """Itself: a stack's axis is its arrays' first."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> CompressedParam:
        """Itself."""
        return self


def is_matrix(path: Path, value: Any) -> bool:
    """The default filter: kernels and tables of at least `LEAST` numbers.

    Args:
      path: keys of the tree.
      value: the array.

    Example:
      >>> import numpy as np
      >>> is_matrix(("mlp", "kernel"), np.ones((64, 64))), is_matrix(("bias",), np.ones(9999))
      (True, False)
    """
    return path[-1] in _WEIGHTS and value.ndim >= 2 and math.prod(value.shape) >= LEAST


def axes_of(path: Path, value: Any) -> tuple[int, int]:
    """How many of a kernel's last axes are rows of one matrix, and how many are its columns.

    One each, and in Linen's attention those of heads: [in, heads, head_dim] and [heads, head_dim,
    out]. Axes before these are a stack.

    Args:
      path: keys of the tree.
      value: the array.

    Example:
      >>> import numpy as np
      >>> axes_of(("attention", "query", "kernel"), np.ones((768, 12, 64)))
      (1, 2)
    """
    axes = _ATTENTION.get(path[-2] if len(path) > 1 else "", (1, 1))
    return axes if value.ndim >= sum(axes) else (1, 1)


def compress_params(
    params: Any,
    filter: Callable[[Path, Any], bool] = is_matrix,
    *,
    axes: Callable[[Path, Any], tuple[int, int]] = axes_of,
    number_format: Format | None = None,
    backend: str | None = None,
) -> Any:
    """Parameters of a Linen module whose matrices rest compressed, to be given to its `apply`.

    Layers get dense arrays, decoded where they are used: outputs are those of the dense parameters,
    bit for bit if compiled alike, on every backend. No fused kernel multiplies, as it does in
    modules that `compress_module` made: weights take fewer bytes and no less time.

    `flax.core.meta.unbox` gives dense parameters back. Optimisers and `jax.grad` want trees of
    floats only; see the example for how to train what is left dense.

    Args:
      params: a tree of arrays, boxes with metadata opened; of `params` alone or of all collections.
      filter: (path, array) -> whether it is to be compressed.
      axes: (path, array) -> how many of its last axes are rows of a matrix, and how many are its
        columns. Those before them are a stack, which `nn.scan` may take apart.
      number_format: what weights are rounded to, see `compress_module`. None: nothing is lost.
      backend: see `to_resident`.

    Returns:
      The same tree, with a `CompressedParam` for every matrix that a layout makes smaller.

    Raises:
      InputError: axes that an array does not have.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> model = nn.Dense(256, param_dtype=jnp.bfloat16)
      >>> x = jnp.ones((1, 64), jnp.bfloat16)
      >>> params = model.init(jax.random.key(0), x)
      >>> small = compress_params(params)
      >>> bool((model.apply(small, x) == model.apply(params, x)).all())
      True
      >>> is_box = lambda leaf: isinstance(leaf, CompressedParam)
      >>> train = jax.tree.map(lambda p: None if is_box(p) else p, small, is_leaf=is_box)
      >>> def loss(train):
      ...     whole = jax.tree.map(lambda t, p: p if t is None else t, train, small,
      ...         is_leaf=lambda leaf: leaf is None or is_box(leaf))
      ...     return model.apply(whole, x).sum()
      >>> list(jax.grad(loss)(train)["params"]["bias"].shape)
      [256]
    """

    def one(keys: tuple, value: Any) -> Any:
        path = tuple(leaf_name((key,)) for key in keys)
        if not filter(path, value):
            return value
        rows, columns = (range(n) for n in axes(path, value))
        columns = range(len(rows), len(rows) + len(columns))
        summed, given = (columns, rows) if path[-1] == _TABLE else (rows, columns)
        try:
            array = kernels.resident_array(
                value, summed, given, backend, number_format=number_format
            )
        except InputError as error:
            raise error.at(tensor=leaf_name(keys)) from error
        return value if array is None else CompressedParam(array)

    return jax.tree_util.tree_map_with_path(one, params)
