"""How each layer of Flax NNX multiplies by a kernel that rests compressed.

A layer's own call stays. Layers get their kernels promoted and multiplied by functions that they
take from outside: `Promotion`, `DotGeneral` and `Einsum` stand in for these, and hand on whatever
is not compressed. `nnx.Embed` takes no such function for its lookup and gets a class.

On the reference backend a layer computes what it does with the decoded kernel, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from jentropy import pallas_kernels as kernels
from jentropy.pallas_kernels import ResidentArray
from jentropy.pallas_kernels.general import fused, parsed

Axes = tuple[tuple[int, ...], tuple[int, ...]]  # of a kernel: summed over, and given


@dataclass(frozen=True, slots=True)
class Promotion:
    """A layer's `promote_dtype`, to which a compressed kernel is a number of its dtype."""

    function: Callable[..., Any]

    def __call__(self, args: tuple[Any, ...], /, **options: Any) -> tuple[Any, ...]:
        plain = tuple(
            jnp.zeros((), arg.dtype) if isinstance(arg, ResidentArray) else arg for arg in args
        )
        return tuple(
            arg.astype(made.dtype) if isinstance(arg, ResidentArray) else made
            for arg, made in zip(args, self.function(plain, **options), strict=True)
        )


@dataclass(frozen=True, slots=True)
class DotGeneral:
    """A layer's `dot_general`."""

    function: Callable[..., Any]

    def __call__(self, x: Any, w: Any, dimension_numbers: Any, **options: Any) -> jax.Array:
        return kernels.dot_general(x, w, dimension_numbers, dense=self.function, **options)


@dataclass(frozen=True, slots=True)
class Einsum:
    """A layer's `einsum_op`."""

    function: Callable[..., Any]

    def __call__(self, equation: str, x: Any, w: Any, **options: Any) -> jax.Array:
        return kernels.einsum(equation, x, w, dense=self.function, **options)


class CompressedEmbed(nnx.Embed):
    """`nnx.Embed` that decodes the rows it looks up, and no others."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        table = self.embedding.get_value()
        plain = self.promote_dtype is promote_dtype and out_sharding is None
        if not (isinstance(table, ResidentArray) and plain) or self.num_embeddings == 1:
            return super().__call__(inputs, out_sharding)
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            return super().__call__(inputs)  # raises
        size = jnp.asarray(self.num_embeddings, jnp.int32)
        ids = inputs.astype(jnp.promote_types(inputs.dtype, jnp.int32))
        ids = jnp.where(ids < 0, ids + size.astype(ids.dtype), ids)
        rows = kernels.take_rows(table.weight, ids, jnp.float32).astype(table.dtype)
        inside = (ids >= 0) & (ids < size.astype(ids.dtype))
        rows = jnp.where(inside[..., None], rows, jnp.nan)  # as `jnp.take` fills
        return rows.astype(self.dtype)

    def attend(self, query: jax.Array, out_sharding: Any = None) -> jax.Array:
        table = self.embedding.get_value()
        if isinstance(table, ResidentArray):
            promote = Promotion(self.promote_dtype)
            x, w = promote((query, table), dtype=self.dtype)
            y = fused(x, w, (x.ndim - 1,), (1,), out_sharding=out_sharding)
            if y is not None:
                return y
        return super().attend(query, out_sharding)


def _with_dot_general(layer: Any) -> None:
    if isinstance(layer.promote_dtype, Promotion):
        return
    layer.promote_dtype = Promotion(layer.promote_dtype)
    made_by = getattr(layer, "dot_general_cls", None)
    function = layer.dot_general if made_by is None else made_by()
    if made_by is not None:
        layer.dot_general_cls = None
    layer.dot_general = DotGeneral(jax.lax.dot_general if function is None else function)


def _with_einsum(layer: Any) -> None:
    if not isinstance(layer.promote_dtype, Promotion):
        layer.promote_dtype = Promotion(layer.promote_dtype)
        layer.einsum_op = Einsum(layer.einsum_op)


def _as_embed(layer: Any) -> None:
    if type(layer) is nnx.Embed:
        object.__setattr__(layer, "__class__", CompressedEmbed)


def _linear_general(layer: nnx.LinearGeneral) -> Axes:
    summed = len(layer.in_features)
    return tuple(range(summed)), tuple(range(summed, summed + len(layer.out_features)))


def _einsum(layer: nnx.Einsum) -> Axes:
    terms = parsed(layer.einsum_str)
    if terms is None:  # several products, or a sum of x alone: any cut will do
        last = len(layer.kernel_shape) - 1
        return tuple(range(last)), (last,)
    of_x, of_w, _ = terms
    summed = tuple(n for n, axis in enumerate(of_w) if axis in of_x)
    return summed, tuple(n for n in range(len(of_w)) if n not in summed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A class of layers that have a matrix.

    Attributes:
      weight: the attribute.
      shape: (layer) -> shape of the matrix, by the layer's sizes; a stack has axes before these.
      axes: (layer) -> which axes of it products sum over, and which they give.
      prepare: makes a layer take a compressed matrix.
    """

    weight: str
    shape: Callable[[Any], tuple[int, ...]]
    axes: Callable[[Any], Axes]
    prepare: Callable[[Any], None]


LAYERS: dict[type, Layer] = {
    nnx.Linear: Layer(
        weight="kernel",
        shape=lambda layer: (layer.in_features, layer.out_features),
        axes=lambda _: ((0,), (1,)),
        prepare=_with_dot_general,
    ),
    nnx.LinearGeneral: Layer(
        weight="kernel",
        shape=lambda layer: (*layer.in_features, *layer.out_features),
        axes=_linear_general,
        prepare=_with_dot_general,
    ),
    nnx.Einsum: Layer(
        weight="kernel",
        shape=lambda layer: tuple(layer.kernel_shape),
        axes=_einsum,
        prepare=_with_einsum,
    ),
    nnx.Embed: Layer(
        weight="embedding",
        shape=lambda layer: (layer.num_embeddings, layer.features),
        axes=lambda _: ((1,), (0,)),
        prepare=_as_embed,
    ),
}
